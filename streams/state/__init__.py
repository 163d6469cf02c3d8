"""RocksDB: tablets and items, and how they are rebuilt."""
