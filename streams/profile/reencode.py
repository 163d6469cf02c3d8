"""Re-encodes stale profiles: those made by another encoder than the lineup assigns to the user.

Users with the newest events come first. The rate is bounded, and live events take precedence. Each profile names its encoder, so a worker that starts
or gets a tablet scans the tablet's profiles and continues where the previous owner stopped.
"""

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable

from schemas.profiles import maker, origin
from streams.core.cancel import to_thread
from streams.monitoring.metrics import Metrics
from streams.profile.encoder_guard import EncoderDown
from streams.profile.recompute import Recomputer
from streams.releases.routing import Current
from streams.state.rocksdb import scan
from streams.state.tablet import Tablet
from streams.state.tablets import Tablets

PASS = 50_000  # stale users that one scan of a tablet queues at most
SCANNED = 2_000  # profiles read under the tablet's lock: a few ms, in which the tablet's live events wait
CHUNK_S = 0.025  # target time to encode one chunk of users; live events wait for it
SMALLEST, LARGEST = 8, 500  # users of a chunk
WAIT_S = 0.05  # between checks for overload
READ_FIRST = 1_000  # users of a tablet that reads move to the front, at most

Place = tuple[int, bytes]
"""(time of the newest event in ms, user): the sort key of the queue."""


class Reencoder:
    """Owns the queue of users with a stale profile.

    `per_s`: users a second in this worker; 0 re-encodes only users whose profiles are read. `overloaded`: whether too many live events wait.
    Calls `done` when this worker has no stale user left.
    """

    def __init__(
        self,
        tablets: Tablets,
        recomputer: Recomputer,
        lineup: Current,
        metrics: Metrics,
        per_s: float,
        overloaded: Callable[[], bool],
        done: Callable[[], Awaitable[None]],
    ) -> None:
        self._tablets, self._recomputer, self._lineup, self._metrics = tablets, recomputer, lineup, metrics
        self._per_s, self._overloaded, self._done = per_s, overloaded, done
        self._queues: dict[int, list[bytes]] = {}  # partition -> users, the next one last
        self._scan_below: dict[int, Place | None] = {}  # partitions to scan -> scan users below this place, None for all
        self._read_first: dict[int, dict[bytes, None]] = {}
        self._wake = asyncio.Event()
        self._chunk = 64
        self._next_at = 0.0
        self._publishing: tuple[asyncio.Task[bool], int] | None = None
        """The publishing task of the last chunk, which runs while the next chunk is encoded; and the chunk's number of users."""

    def pending(self) -> int:
        """Number of queued users."""
        return sum(map(len, self._queues.values()))

    def busy(self) -> bool:
        """Whether some profiles may still be stale."""
        return bool(self._queues or self._scan_below or self._publishing) or not self._per_s

    def switched(self) -> None:
        """Scan all tablets: the lineup changed, so every profile may be stale."""
        self._queues.clear()
        for tablet in self._tablets:
            self.restored(tablet)
        self._wake.set()

    def restored(self, tablet: Tablet) -> None:
        """Scan a tablet that was restored."""
        if self._per_s:
            self._queues.pop(tablet.partition, None)
            self._scan_below[tablet.partition] = None
            self._wake.set()

    def read(self, partition: int, user: bytes, profile: bytes) -> None:
        """Move the user of a profile that was read to the front of the queue if the profile is stale."""
        if self.busy() and len(self._read_first.get(partition, ())) < READ_FIRST and self.stale(user, profile):
            self._read_first.setdefault(partition, {})[user] = None
            self._wake.set()

    def stale(self, user: bytes, profile: bytes) -> bool:
        """Whether another encoder than the lineup's for this user made the profile."""
        return not self._lineup().makes(user, maker(profile))

    async def forever(self) -> None:
        """Re-encode a chunk of each tablet in turn, whenever users are queued. Never returns."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queues or self._scan_below or self._read_first:
                for partition in sorted(self._queues.keys() | self._scan_below.keys() | self._read_first.keys()):
                    await self._wait_for_capacity()
                    await self._step(partition)
            await self._finish_publishing()
            if self._per_s and self._tablets.generation is not None and all(t.restored.is_set() for t in self._tablets):
                await self._done()

    async def _wait_for_capacity(self) -> None:
        """Wait while the worker is overloaded, and until the rate allows another chunk."""
        while self._overloaded():
            await asyncio.sleep(WAIT_S)
        await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))

    async def _step(self, partition: int) -> None:
        generation = self._tablets.generation
        tablet = self._tablets.get(partition)
        if generation is None or (tablet is not None and not tablet.restored.is_set()):
            await asyncio.sleep(WAIT_S)  # during a rebalance or a restore, after which the tablet is scanned anew
            return
        if tablet is None:
            self._queues.pop(partition, None)
            self._scan_below.pop(partition, None)
            self._read_first.pop(partition, None)
            return
        read_users = self._read_first.pop(partition, {})
        if read_users:
            await self._encode(tablet, generation, list(read_users))
        elif queue := self._queues.get(partition):
            chunk, queue[-self._chunk :] = queue[: -self._chunk - 1 : -1], []
            await self._encode(tablet, generation, chunk)
        elif partition in self._scan_below:
            await self._find_stale(tablet, generation)
        else:
            self._queues.pop(partition, None)

    async def _encode(self, tablet: Tablet, generation: int, users: list[bytes]) -> None:
        began = time.monotonic()
        async with self._recomputer.background_turn(tablet, generation) as held:
            if not held:
                return  # the tablet's next owner scans it
            users = [u for u in users if (profile := tablet.profile(u)) and self.stale(u, profile)]
            if not users:
                return
            try:
                publishing, took = await self._recomputer.recompute(tablet, users)
            except EncoderDown as down:
                self._queues[tablet.partition] = [*self._queues.get(tablet.partition, ()), *reversed(users)]
                self._next_at = time.monotonic() + down.wait_s
                return
        self._chunk = min(LARGEST, max(SMALLEST, int(len(users) * min(2.0, CHUNK_S / max(took, 1e-6)))))
        if self._per_s:
            self._next_at = max(self._next_at, began) + len(users) / self._per_s
        await self._finish_publishing()
        self._publishing = publishing, len(users)

    async def _finish_publishing(self) -> None:
        """Wait until the last chunk is published. If this worker lost the tablet, the next owner finds the chunk's users by a scan."""
        if self._publishing is not None:
            (task, users), self._publishing = self._publishing, None
            if await task:
                self._metrics.released.inc(users)

    async def _find_stale(self, tablet: Tablet, generation: int) -> None:
        partition, below = tablet.partition, self._scan_below.pop(tablet.partition)
        heap, at, more = list[Place](), b"", False
        while True:
            await self._wait_for_capacity()
            async with tablet.lock:
                if not self._tablets.holds(tablet, generation):
                    return
                rows, following = await to_thread(self._scan_stale, tablet, at, below)
            for row in rows:
                more |= len(heap) == PASS
                heapq.heappush(heap, row) if len(heap) < PASS else heapq.heappushpop(heap, row)
            if following is None:
                break
            at = following
        if partition in self._scan_below:  # the lineup changed meanwhile
            return
        self._queues[partition] = [user for _, user in sorted(heap)]
        if more:
            self._scan_below[partition] = heap[0]

    def _scan_stale(self, tablet: Tablet, start: bytes, below: Place | None) -> tuple[list[Place], bytes | None]:
        """Read SCANNED profiles from the key `start` on. Returns the places of stale ones below `below`, and the next key, None at the end."""
        found, lineup = list[Place](), self._lineup()
        for n, (user, profile) in enumerate(scan(tablet.path, tablet.family("profiles"), start or None)):
            if n == SCANNED:
                return found, user
            made = origin(profile)
            if not lineup.makes(user, (made.encoder_version, made.space_id)):
                place = made.last_event_at, user
                if below is None or place < below:
                    found.append(place)
        return found, None
