"""A tablet: one partition of the window and profile tables in one RocksDB.

Column families, keys and values in raw bytes:

    windows   user_id -> window
    profiles  user_id -> profile
    waiting   item_key (8 bytes, big-endian) + user_id -> ""   users whose window holds an item without a vector; key 0 (FALLBACK): users whose
                                                               profile the fallback encoder made; the last key (UNPUBLISHED): users whose last
                                                               rows in the changelogs may differ from the rows here, though no event will come;
                                                               the one before it (LOST): users of whose window no good row was left
    meta      changelog topic -> offset of its last row here, wall clock in ms (two big-endian i64)
"""

import asyncio
import struct
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rocksdict import Cache, WriteBatch

from streams.core.cancel import end
from streams.state.rocksdb import close, ended, failure, open_db, remove, scan

FAMILIES = ("windows", "profiles", "waiting", "meta")
FALLBACK = bytes(8)
"""Key of `waiting` for users who wait for the encoder."""
UNPUBLISHED = b"\xff" * 8
"""Key of `waiting` for users whose rows have to be published again."""
LOST = b"\xff" * 7 + b"\xfe"
"""Key of `waiting` for users whose window has to be folded again from the unified topic."""
_META = struct.Struct(">qq")
T = TypeVar("T")


class Tables:
    """The open RocksDB of one tablet: its column families, and their handles for write batches."""

    def __init__(self, path: Path, cache: Cache | None, write_buffer_bytes: int) -> None:
        self._path = path
        self.db = open_db(path, cache, write_buffer_bytes, FAMILIES, read_often=("windows",))
        self.families = {f: self.db.get_column_family(f) for f in FAMILIES}
        self.handles = {f: self.db.get_column_family_handle(f) for f in FAMILIES}

    def close(self) -> None:
        """Close the files. A read or write afterwards raises KeyError, as the tables are gone."""
        self.handles.clear()
        close(self._path, [*self.families.values(), self.db])
        self.families.clear()


class Tablet:
    """Owns one partition's tables, and the order in which batches may change them.

    A batch makes and writes its rows under `lock` and publishes them under `publishing`. It takes `publishing` before it releases `lock`: the next
    batch is folded while the rows of the one before are on their way, and rows are published in the order in which they were written.
    """

    def __init__(self, partition: int, path: Path, cache: Cache | None = None, write_buffer_bytes: int = 8 << 20) -> None:
        self.partition, self.path = partition, path
        self._open: Callable[[], Tables] = partial(Tables, path, cache, write_buffer_bytes)
        self.lock = asyncio.Lock()
        self.publishing = asyncio.Lock()
        self.restored = asyncio.Event()
        self.restores: list[asyncio.Task[None]] = []
        """The one under way, and those before it that have not ended yet."""
        self.foreign_rows_seen = False
        """Whether rows of another worker were found in a changelog since the last restore began."""
        self._tables = self._open()

    def restore_by(self, work: Callable[[], Coroutine[Any, Any, None]], spawn: "Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]") -> None:
        """Begin a restore once the one under way has ended: two at once would let batches in when the first is done, and the
        second would put old rows behind theirs.
        """
        before = [task for task in self.restores if not task.done()]

        async def after() -> None:
            await end(before)
            await work()

        self.restores = [*before, spawn(after())]

    async def idle(self) -> None:
        """Wait until nothing of the tablet is being made, written or published."""
        async with self.lock, self.publishing:
            pass

    def windows(self, users: list[bytes]) -> list[bytes | None]:
        """Windows of users, None where there is none."""
        return list(self._get("windows", users))

    def profile(self, user: bytes) -> bytes | None:
        """The stored profile of a user."""
        found: bytes | None = self._get("profiles", user)
        return found

    def _get(self, family: str, key: Any) -> Any:
        try:
            return self._cf[family].get(key)
        except Exception as error:  # rocksdict raises bare Exception
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Exception:
        return failure(self.path, error) if self._cf else error  # an access after `close` is no fault of the storage

    @property
    def _cf(self) -> dict[str, Any]:
        return self._tables.families

    def write(
        self,
        windows: Iterable[tuple[bytes, bytes | None]] = (),
        profiles: Iterable[tuple[bytes, bytes | None]] = (),
        waiting: Iterable[tuple[bytes, bytes]] = (),
        resolved: Iterable[tuple[bytes, bytes]] = (),
        offsets: Mapping[str, int] | None = None,
        now_ms: int = 0,
    ) -> None:
        """All or nothing: rows (value None = delete), (item key, user) pairs that wait or no longer do, changelog offsets."""
        batch, handles = WriteBatch(raw_mode=True), self._tables.handles
        for family, rows in (("windows", windows), ("profiles", profiles)):
            handle = handles[family]
            for key, value in rows:
                if value is None:
                    batch.delete(key, handle)
                else:
                    batch.put(key, value, handle)
        for item, user in waiting:
            batch.put(item + user, b"", handles["waiting"])
        for item, user in resolved:
            batch.delete(item + user, handles["waiting"])
        for topic, offset in (offsets or {}).items():
            batch.put(topic.encode(), _META.pack(offset, now_ms), handles["meta"])
        try:
            self._tables.db.write(batch)
        except Exception as error:  # rocksdict raises bare Exception
            raise self._failure(error) from None

    def offset(self, topic: str) -> tuple[int, int]:
        """(offset of the last row of a changelog that is in here, when it was noted in ms); (-1, 0) when new."""
        found = self._get("meta", topic.encode())
        return _META.unpack(found) if found else (-1, 0)

    def waiting(self, item: bytes) -> Iterator[bytes]:
        """Users who wait for an item (its 8-byte key)."""
        for key, _ in scan(self.path, self._cf["waiting"], item):
            if key[:8] != item:
                break
            yield key[8:]

    def awaited(self) -> Iterator[bytes]:
        """The 8-byte keys of all items that somebody waits for."""
        it = self._cf["waiting"].iter()
        it.seek_to_first()
        while it.valid():
            item = it.key()[:8]
            yield item
            it.seek(item + b"\xff" * 8)  # past every user: UTF-8 has no byte ff
        ended(self.path, it)

    def family(self, name: str) -> Any:
        """A table, for `streams.state.rocksdb.scan`. Under `lock`: a rebalance closes it."""
        return self._cf[name]

    def scan(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        """Every row of a table, in key order."""
        yield from scan(self.path, self._cf[family])

    def size(self) -> dict[str, int]:
        """Estimated users, and bytes on disk and in memtables."""
        cf = self._cf
        disk = sum(c.property_int_value("rocksdb.total-sst-files-size") or 0 for c in cf.values())
        memory = sum(c.property_int_value("rocksdb.cur-size-all-mem-tables") or 0 for c in cf.values())
        return {"users": cf["profiles"].property_int_value("rocksdb.estimate-num-keys") or 0, "disk": disk, "memory": memory}

    def flush(self) -> None:
        """Bring everything to the disk, the offsets last."""
        try:
            for family in FAMILIES:
                self._cf[family].flush()
        except Exception as error:  # rocksdict raises bare Exception
            raise self._failure(error) from None

    def compact(self) -> None:
        """Bring every row into its final, most compressed place."""
        self.flush()
        for family in self._cf.values():
            family.compact_range(None, None)

    def wipe(self) -> None:
        """Delete every row, in place: the tablet cannot be trusted and is restored from the beginning of its changelogs."""
        self._tables.close()
        remove(self.path)
        self._tables = self._open()

    def close(self) -> None:
        """Close the files; the tablet is not used again."""
        self._tables.close()


async def publish_in_order(tablets: Iterable[Tablet], publishing: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Begin to publish what was written to some tablets, once what was written before is published. Call it while their `lock` is held."""
    taken: list[asyncio.Lock] = []

    def release(_: Any = None) -> None:
        for lock in taken:
            lock.release()

    try:
        for tablet in sorted(tablets, key=lambda t: t.partition):
            await tablet.publishing.acquire()
            taken.append(tablet.publishing)
    except BaseException:
        publishing.close()
        release()
        raise
    task = asyncio.create_task(publishing)
    task.add_done_callback(release)  # also of one that is cancelled before it began
    return task


def key_bytes(item_key: int) -> bytes:
    """An item key as the 8 bytes that begin a row of `waiting`."""
    return item_key.to_bytes(8, "big")
