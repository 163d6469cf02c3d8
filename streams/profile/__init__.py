"""Makes profiles from windows, writes them to RocksDB and publishes them."""
