"""An open-loop load generator for OpenAI endpoints: a workload from a seed, a client that measures, a summary."""
