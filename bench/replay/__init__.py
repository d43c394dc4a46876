"""`epp replay` and `epp tune`: a log of real traffic against configurations, in the routing lab."""
