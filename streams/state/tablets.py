"""The tablets of one process: which are open, which generation may write to them, and when their changelogs hold foreign rows."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rocksdict import Cache

from streams.core.cancel import end, to_thread
from streams.state.rocksdb import sound
from streams.state.tablet import Tablet

log = logging.getLogger("currents.tablets")
STALE_MS = 12 * 3_600_000
"""Half of Kafka's default delete.retention.ms: a longer absence may have missed an erasure, so the tablet is rebuilt."""
FLUSH_S = 600.0


class Tablets:
    """Owns which tablets are open, and which generation may write to them: only the one in which a batch was fetched.

    `is_member`: whether the group still counts this worker as a member. `begin_restore` is called with a tablet whose changelog holds foreign rows.
    """

    def __init__(
        self,
        folder: Path,
        cache_mb: int,
        write_buffer_mb: int,
        is_member: Callable[[], bool] = lambda: True,
        begin_restore: Callable[[Tablet], None] = lambda tablet: None,
    ) -> None:
        self._folder, self._is_member, self._begin_restore = folder, is_member, begin_restore
        self._cache = Cache(cache_mb << 20)
        self._write_buffer_bytes = write_buffer_mb << 20
        self._open: dict[int, Tablet] = {}
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

    async def wait_within_generation(self, generation: int | None, seconds: float) -> bool:
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
        tablet.foreign_rows_seen = True
        if tablet.restored.is_set():
            tablet.restored.clear()
            if self.generation is not None:  # else partitions are on the move: it is restored in the next generation, or gone
                self._begin_restore(tablet)

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
