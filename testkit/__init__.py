"""Shared by tests and benchmarks: brokers, clusters, processes, loads, small logs and bundles."""
