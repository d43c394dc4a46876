"""The routing lab: what a policy does with a trace, under virtual time, with the objects that production runs."""
