"""Users whose profiles another encoder made than the one that should: encoded again, the newest events first, at a bounded rate, behind live events.

Whose they are stands in the profiles themselves: a worker that starts or gets a tablet looks through them, and goes on where another stopped.
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

PASS = 50_000  # users of a tablet that are found in one look through it
LOOK = 2_000  # profiles looked at at once: a few ms, in which the tablet's live events wait
CHUNK_S = 0.025  # what encoding a chunk of users should take: live events that come meanwhile wait so long
SMALLEST, LARGEST = 8, 500  # users of a chunk
WAIT_S = 0.05  # between looks at whether live events still wait
ASKED = 1_000  # users of a tablet who were read and are to be next, at most

Place = tuple[int, bytes]
"""(time of the newest event in ms, user): what the order is by."""


class Reencoder:
    """Owns the queue of users whose profile another encoder made than the one that should.

    `per_s`: users a second and worker, 0 for only those that are read. `overloaded`: whether too many live events wait for this work.
    `done` is called when no user is left here.
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
        self._below: dict[int, Place | None] = {}  # partitions that are to be looked through, and from where
        self._asked: dict[int, dict[bytes, None]] = {}
        self._wake = asyncio.Event()
        self._chunk = 64
        self._next_at = 0.0
        self._publishing: tuple[asyncio.Task[bool], int] | None = None
        """The last chunk's rows on their way, while the next chunk is encoded; and how many users those are."""

    def pending(self) -> int:
        """Users found and not encoded yet."""
        return sum(map(len, self._queues.values()))

    def busy(self) -> bool:
        """Whether some profiles may still be another encoder's."""
        return bool(self._queues or self._below or self._publishing) or not self._per_s

    def switched(self) -> None:
        """Another lineup: everybody may be another's."""
        self._queues.clear()
        for tablet in self._tablets:
            self.restored(tablet)
        self._wake.set()

    def restored(self, tablet: Tablet) -> None:
        """A tablet came up."""
        if self._per_s:
            self._queues.pop(tablet.partition, None)
            self._below[tablet.partition] = None
            self._wake.set()

    def read(self, partition: int, user: bytes, profile: bytes) -> None:
        """A profile was read: if it is another encoder's, its user is next."""
        if self.busy() and len(self._asked.get(partition, ())) < ASKED and self.stale(user, profile):
            self._asked.setdefault(partition, {})[user] = None
            self._wake.set()

    def stale(self, user: bytes, profile: bytes) -> bool:
        """Whether a profile is not of the encoder that should have made it."""
        return not self._lineup().makes(user, maker(profile))

    async def forever(self) -> None:
        """A chunk of each tablet in turn, for as long as there are any."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queues or self._below or self._asked:
                for partition in sorted(self._queues.keys() | self._below.keys() | self._asked.keys()):
                    await self._turn()
                    await self._step(partition)
            await self._published()
            if self._per_s and self._tablets.generation is not None and all(t.restored.is_set() for t in self._tablets):
                await self._done()

    async def _turn(self) -> None:
        """Wait while live events wait, and until the rate allows for more."""
        while self._overloaded():
            await asyncio.sleep(WAIT_S)
        await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))

    async def _step(self, partition: int) -> None:
        generation = self._tablets.generation
        tablet = self._tablets.get(partition)
        if generation is None or (tablet is not None and not tablet.restored.is_set()):
            await asyncio.sleep(WAIT_S)  # on the move, or being restored: then it is looked through anew
            return
        if tablet is None:
            self._queues.pop(partition, None)
            self._below.pop(partition, None)
            self._asked.pop(partition, None)
            return
        asked = self._asked.pop(partition, {})
        if asked:
            await self._encode(tablet, generation, list(asked))
        elif queue := self._queues.get(partition):
            chunk, queue[-self._chunk :] = queue[: -self._chunk - 1 : -1], []
            await self._encode(tablet, generation, chunk)
        elif partition in self._below:
            await self._look(tablet, generation)
        else:
            self._queues.pop(partition, None)

    async def _encode(self, tablet: Tablet, generation: int, users: list[bytes]) -> None:
        began = time.monotonic()
        async with self._recomputer.background_turn(tablet, generation) as mine:
            if not mine:
                return  # its next owner looks through it
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
        await self._published()
        self._publishing = publishing, len(users)

    async def _published(self) -> None:
        """Wait for the chunk that is on its way. Who it was in vain for, because the tablet went, is found by its next owner."""
        if self._publishing is not None:
            (task, users), self._publishing = self._publishing, None
            if await task:
                self._metrics.released.inc(users)

    async def _look(self, tablet: Tablet, generation: int) -> None:
        partition, below = tablet.partition, self._below.pop(tablet.partition)
        heap, at, more = list[Place](), b"", False
        while True:
            await self._turn()
            async with tablet.lock:
                if not self._tablets.holds(tablet, generation):
                    return
                rows, following = await to_thread(self._rows, tablet, at, below)
            for row in rows:
                more |= len(heap) == PASS
                heapq.heappush(heap, row) if len(heap) < PASS else heapq.heappushpop(heap, row)
            if following is None:
                break
            at = following
        if partition in self._below:  # another lineup came meanwhile
            return
        self._queues[partition] = [user for _, user in sorted(heap)]
        if more:
            self._below[partition] = heap[0]

    def _rows(self, tablet: Tablet, start: bytes, below: Place | None) -> tuple[list[Place], bytes | None]:
        """Of LOOK profiles from a key on those that are another encoder's, older than `below`; and the key to go on from, None at the end."""
        found, lineup = list[Place](), self._lineup()
        for n, (user, profile) in enumerate(scan(tablet.path, tablet.family("profiles"), start or None)):
            if n == LOOK:
                return found, user
            made = origin(profile)
            if not lineup.makes(user, (made.encoder_version, made.space_id)):
                place = made.last_event_at, user
                if below is None or place < below:
                    found.append(place)
        return found, None
