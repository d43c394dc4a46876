"""Real gateways that are no plain Envoy."""
