"""The Helm charts: what values render to, kept in `tests/data/helm`."""
