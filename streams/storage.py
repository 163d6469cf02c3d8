"""Opening a RocksDB the way this project wants it."""

from collections.abc import Iterable
from pathlib import Path

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict


class StorageError(RuntimeError):
    """A data folder that cannot be used: says which, why and what to do."""


def options(cache: Cache | None, write_buffer_bytes: int) -> Options:
    """RocksDB options of one column family: small memtable, shared cache, zstd below the first levels."""
    o = Options(raw_mode=True)
    o.create_if_missing(True)
    o.create_missing_column_families(True)
    o.set_write_buffer_size(write_buffer_bytes)
    o.set_max_write_buffer_number(3)
    o.set_compression_type(DBCompressionType.lz4())
    o.set_bottommost_compression_type(DBCompressionType.zstd())
    o.set_keep_log_file_num(2)
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_size(16 << 10)
    if cache is not None:
        table.set_block_cache(cache)
    o.set_block_based_table_factory(table)
    return o


def open_db(path: Path, cache: Cache | None, write_buffer_bytes: int, families: Iterable[str]) -> Rdict:
    """Open or make a RocksDB. Raises StorageError with what to do."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        return Rdict(str(path), options(cache, write_buffer_bytes), {f: options(cache, write_buffer_bytes) for f in families})
    except Exception as error:  # rocksdict raises bare Exception
        hint = (
            "another worker uses this folder: give each its own worker.data_dir" if "lock" in str(error).lower() else "is the disk full or damaged?"
        )
        raise StorageError(f"{path}: {error}; {hint}") from None
