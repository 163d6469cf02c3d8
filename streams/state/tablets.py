"""A tablet: one partition of the window and profile tables in one RocksDB, and who may write to it when.

Column families of a tablet, keys and values in raw bytes:

    windows   user_id -> window
    profiles  user_id -> profile
    waiting   item_key (8 bytes, big-endian) + user_id -> ""   users whose window holds an item without a vector; key 0 (FALLBACK): whose
                                                               profile is the fallback encoder's; the last key (OWED): whose last rows in the
                                                               changelogs may not be those that are here, and no event will come again for that
    meta      changelog topic -> offset of its last row here, wall clock in ms (two big-endian i64)
"""

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rocksdict import Cache, WriteBatch

from streams.core.cancel import end, to_thread
from streams.state.rocksdb import close, ended, failure, open_db, remove, scan, sound

log = logging.getLogger("currents.tablets")
FAMILIES = ("windows", "profiles", "waiting", "meta")
STALE_MS = 12 * 3_600_000
"""Half of Kafka's default delete.retention.ms: a longer absence may have missed an erasure, so the tablet is rebuilt."""
FALLBACK = bytes(8)
"""Key of `waiting` for users who wait for the encoder."""
OWED = b"\xff" * 8
"""Key of `waiting` for users whose rows have to be published again."""
FLUSH_S = 600.0
_META = struct.Struct(">qq")
T = TypeVar("T")


class Tablet:
    """One partition's tables. Rows are made and written under `lock`, by one batch at a time, and published under `publishing`, in that order.

    Who has written takes `publishing` before letting `lock` go: so the next batch is folded while the rows of the one before are on their way.
    """

    def __init__(self, partition: int, path: Path, cache: Cache | None = None, write_buffer_bytes: int = 8 << 20) -> None:
        self.partition, self.path = partition, path
        self.lock = asyncio.Lock()
        self.publishing = asyncio.Lock()
        self.restored = asyncio.Event()
        self.restores: list[asyncio.Task[None]] = []
        """The one under way, and those before it that have not ended yet."""
        self.strange = False
        """Another worker's rows were found in a changelog since the last restore began."""
        self._db = open_db(path, cache, write_buffer_bytes, FAMILIES, read_often=("windows",))
        self._cf = {f: self._db.get_column_family(f) for f in FAMILIES}
        self._handle = {f: self._db.get_column_family_handle(f) for f in FAMILIES}

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
        return failure(self.path, error) if self._cf else error  # a closed one is no storage's fault

    def write(
        self,
        windows: Iterable[tuple[bytes, bytes | None]] = (),
        profiles: Iterable[tuple[bytes, bytes | None]] = (),
        waiting: Iterable[tuple[bytes, bytes]] = (),
        arrived: Iterable[tuple[bytes, bytes]] = (),
        offsets: Mapping[str, int] | None = None,
        now_ms: int = 0,
    ) -> None:
        """All or nothing: rows (value None = delete), (item key, user) pairs that wait or no longer do, changelog offsets."""
        batch = WriteBatch(raw_mode=True)
        for family, rows in (("windows", windows), ("profiles", profiles)):
            handle = self._handle[family]
            for key, value in rows:
                if value is None:
                    batch.delete(key, handle)
                else:
                    batch.put(key, value, handle)
        for item, user in waiting:
            batch.put(item + user, b"", self._handle["waiting"])
        for item, user in arrived:
            batch.delete(item + user, self._handle["waiting"])
        for topic, offset in (offsets or {}).items():
            batch.put(topic.encode(), _META.pack(offset, now_ms), self._handle["meta"])
        try:
            self._db.write(batch)
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

    def close(self) -> None:
        """Close the files; the tablet is not used again."""
        self._handle.clear()
        close(self.path, [*self._cf.values(), self._db])
        self._cf.clear()


async def in_turn(tablets: Iterable[Tablet], publishing: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
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


class Tablets:
    """The tablets of one worker. A batch is written only by the generation that it was fetched in."""

    def __init__(self, folder: Path, cache_mb: int, write_buffer_mb: int, is_member: Callable[[], bool] = lambda: True) -> None:
        self._folder, self._is_member = folder, is_member
        self._cache = Cache(cache_mb << 20)
        self._write_buffer_bytes = write_buffer_mb << 20
        self._open: dict[int, Tablet] = {}
        self.distrusted: Callable[[Tablet], None] = lambda tablet: None
        """Called with a tablet whose changelog holds rows that are not its own."""
        self.generation: int | None = None
        """None while partitions are on the move: nobody writes."""

    def __iter__(self) -> Iterator[Tablet]:
        return iter(list(self._open.values()))

    def get(self, partition: int) -> Tablet | None:
        """The tablet of a partition that this worker has, restored or not."""
        return self._open.get(partition)

    async def freeze(self) -> None:
        """Partitions are being revoked: let batches in flight finish, begin no other, and stop restoring."""
        self.generation = None
        for tablet in self:
            await end(tablet.restores)
            await tablet.idle()

    def assign(self, partitions: set[int], generation: int) -> list[Tablet]:
        """Close what went, open what came; returns all tablets: each is restored.

        Also those that stayed: another may have had them in a generation that went by without this worker, or may have written to their
        changelogs though it no longer had them. Where neither is so, restoring reads nothing.
        """
        for partition in set(self._open) - partitions:
            self._open.pop(partition).close()
        self._open |= {p: self.open(p) for p in sorted(partitions - set(self._open))}
        for tablet in self:
            tablet.restored.clear()
        self.generation = generation
        return list(self)

    def open(self, partition: int) -> Tablet:
        """Open the RocksDB of a partition; empty where it was damaged."""
        path = self._folder / f"tablet-{partition}"
        return sound(path, lambda: Tablet(partition, path, self._cache, self._write_buffer_bytes))

    def wipe(self, tablet: Tablet) -> None:
        """Empty a tablet that cannot be trusted, in place."""
        tablet.close()
        remove(tablet.path)
        fresh = self.open(tablet.partition)
        tablet._db, tablet._cf, tablet._handle = fresh._db, fresh._cf, fresh._handle

    async def ready(self, partition: int, generation: int) -> Tablet | None:
        """The tablet once it is restored, or None when the generation has passed."""
        while generation == self.generation:
            tablet = self._open.get(partition)
            if tablet is None:
                return None
            if tablet.restored.is_set():
                return tablet
            try:
                await asyncio.wait_for(tablet.restored.wait(), 0.5)
            except TimeoutError:
                continue  # the generation may have passed meanwhile
        return None

    def holds(self, tablet: Tablet, generation: int | None) -> bool:
        """Whether a tablet is restored, and this generation has not passed."""
        return generation is not None and generation == self.generation and tablet.restored.is_set()

    async def still(self, generation: int | None, seconds: float) -> bool:
        """Wait, but no longer than the generation lasts; whether it does."""
        deadline = time.monotonic() + seconds
        while generation is not None and generation == self.generation and (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.05))
        return generation is not None and generation == self.generation

    def published(self, tablet: Tablet, topic: str, rows: int, last: int, now_ms: int) -> None:
        """Note that `rows` rows went to a changelog, the last at offset `last`.

        If another worker's rows are among or before them the tablet's offset stays in front of those, and it is restored, which reads them.
        """
        have, _ = tablet.offset(topic)
        if last == have + rows:
            tablet.write(offsets={topic: last}, now_ms=now_ms)
            return
        log.warning("tablet %d: %s holds %d rows of another worker", tablet.partition, topic, last - have - rows)
        tablet.strange = True
        if tablet.restored.is_set():
            tablet.restored.clear()
            if self.generation is not None:  # else partitions are on the move: it is restored in the next generation, or gone
                self.distrusted(tablet)

    async def flush_forever(self) -> None:
        """Now and then bring the tablets to the disk: a killed worker's goes back to that moment."""
        while True:
            await asyncio.sleep(FLUSH_S)
            for tablet in self:
                async with tablet.lock:
                    if self._open.get(tablet.partition) is tablet:
                        await to_thread(tablet.flush)

    async def may_publish(self, generation: int | None) -> bool:
        """Whether this generation's rows may go to the changelogs; waits until the group is known to still have this worker, or not."""
        while generation is not None and generation == self.generation:
            if self._is_member():
                return True
            await asyncio.sleep(0.05)
        return False

    def total(self, what: str) -> int:
        """`users`, `disk` or `memory` of all tablets."""
        return sum(t.size()[what] for t in self)

    def close(self) -> None:
        """Close everything."""
        self.generation = None
        for tablet in self:
            tablet.close()
        self._open.clear()


def key_bytes(item_key: int) -> bytes:
    """An item key as the 8 bytes that begin a row of `waiting`."""
    return item_key.to_bytes(8, "big")
