"""Traces that come with the project: real ones in files (README.md says whose), generated ones in `bench.lab.generated`."""
