"""A RocksDB the way this project wants it: a cache of what Kafka's topics say, thrown away when it is damaged.

There is no write-ahead log: the changelog is one already. All column families are flushed together, so after a kill -9 a RocksDB is as it was at
an earlier moment, its offsets too, and reading the topics goes on from there. (With a log of its own a lost segment would go unnoticed:
later segments are applied, and the offsets then promise rows that are not there.)
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteOptions

from streams.core.errors import DamagedError, StorageError

log = logging.getLogger("currents.storage")
MARK = "DAMAGED"  # a file in the folder of a RocksDB that is not to be opened again
YOUNG = 8  # files of a memtable each that are merged at once: more are more to look through, and more on the disk meanwhile
T = TypeVar("T")


def options(cache: Cache | None, write_buffer_bytes: int, read_often: bool = False) -> Options:
    """RocksDB options of one column family: small memtable, shared cache.

    Compaction is most of what a user's update costs in RocksDB: young files are not compressed, and eight of them are merged at once.
    `read_often`: rows that every update reads, too, in small blocks of lz4; others are zstd once they are at rest.
    """
    o, lz4 = Options(raw_mode=True), DBCompressionType.lz4()
    o.create_if_missing(True)
    o.create_missing_column_families(True)
    o.set_atomic_flush(True)
    o.set_write_buffer_size(write_buffer_bytes)
    o.set_max_write_buffer_number(3)
    o.set_level_zero_file_num_compaction_trigger(YOUNG)
    o.set_level_zero_slowdown_writes_trigger(5 * YOUNG)  # a write that waits holds Python's interpreter
    o.set_level_zero_stop_writes_trigger(8 * YOUNG)
    o.set_compression_per_level([DBCompressionType.none(), *[lz4] * 6])
    o.set_bottommost_compression_type(lz4 if read_often else DBCompressionType.zstd())
    o.set_keep_log_file_num(2)
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_size((4 if read_often else 16) << 10)
    if cache is not None:
        table.set_block_cache(cache)
    o.set_block_based_table_factory(table)
    return o


def open_db(path: Path, cache: Cache | None, write_buffer_bytes: int, families: Iterable[str], read_often: Collection[str] = ()) -> Rdict:
    """Open or make a RocksDB. Raises StorageError with what to do, DamagedError where there is nothing to do but to empty it."""
    if (path / MARK).exists():
        raise DamagedError(f"{path}: was found damaged")
    try:
        path.mkdir(parents=True, exist_ok=True)
        columns = {f: options(cache, write_buffer_bytes, f in read_often) for f in families}
        db = Rdict(str(path), options(cache, write_buffer_bytes), columns)
        db.set_write_options(without_log())
    except Exception as error:  # rocksdict raises bare Exception
        raise failure(path, error) from None
    return db


def without_log() -> WriteOptions:
    """Writes that go to the memtable alone."""
    w = WriteOptions()
    w.disable_wal = True
    return w


def failure(path: Path, error: Exception) -> StorageError:
    """What to say of a RocksDB's error; marks its folder when it is damaged, so that the next one who opens it empties it."""
    said = " ".join(str(error).split())
    if "LOCK" in said:
        return StorageError(f"{path}: {said}; another worker uses this folder: give each its own worker.data_dir")
    if "Corruption" in said or "No such file" in said:
        with contextlib.suppress(OSError):
            (path / MARK).touch()
        return DamagedError(f"{path}: {said}; it is emptied when it is opened next, and read again from Kafka")
    return StorageError(f"{path}: {said}; is the disk full?")


def sound(path: Path, make: Callable[[], T]) -> T:
    """What `make` opens in a folder. A damaged RocksDB is emptied first: the topics have it all."""
    try:
        return make()
    except DamagedError as error:
        why = str(error)
    log.warning("%s: emptied now", why)
    remove(path)  # only now: the error's frames may hold an iterator, and with it the RocksDB
    return make()


def close(path: Path, parts: Iterable[Any]) -> None:
    """Close column families and their RocksDB, each whatever the others say."""
    for part in parts:
        try:
            part.close()
        except Exception as error:  # rocksdict raises bare Exception: after a failed write it cannot flush either
            log.error("%s: %s", path, error)


def remove(path: Path) -> None:
    """Take a RocksDB's folder away. Out of the way first: one that was open just now may still be tidying up in it."""
    gone = path.with_name(f"gone-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def scan(path: Path, family: Any, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Rows of a column family from a key on, in order. Raises StorageError, where rocksdict's own `items` would end without a word."""
    it = family.iter()
    it.seek_to_first() if start is None else it.seek(start)
    while it.valid():
        yield it.key(), it.value()
        it.next()
    ended(path, it)


def ended(path: Path, it: Any) -> None:
    """Make sure that an iterator is at the end, and not at something that cannot be read. Raises StorageError."""
    try:
        it.status()
    except Exception as error:  # rocksdict raises bare Exception
        raise failure(path, error) from None
