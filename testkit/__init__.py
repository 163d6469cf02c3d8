"""What tests and benchmarks both use: brokers, clusters, processes, loads, small logs and bundles."""
