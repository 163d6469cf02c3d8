"""The live path: events from Kafka in, profiles in RocksDB, on a changelog topic and over HTTP."""
