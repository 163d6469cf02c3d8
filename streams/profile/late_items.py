"""Recomputes users that have no new event, because item vectors arrived late or because the fallback encoder made their profiles.

A worker drops this work first under load: it recomputes no user while many live events wait.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from streams.core.cancel import to_thread
from streams.monitoring.metrics import Metrics
from streams.profile.encoder_guard import EncoderDown
from streams.profile.recompute import CHUNK, Recomputer
from streams.state.tablet import FALLBACK, Tablet, key_bytes
from streams.state.tablets import Tablets

PASS = 20_000  # pairs of item and user in one pass
POLL_S = 0.1  # between checks for overload
FELL_BACK = int.from_bytes(FALLBACK, "big")


class LateItems:
    """Owns the recomputing of users that wait for an item vector or for the encoder. `overloaded`: whether too many live events wait."""

    def __init__(self, tablets: Tablets, recomputer: Recomputer, metrics: Metrics, overloaded: Callable[[], bool]) -> None:
        self._tablets, self._recomputer, self._metrics, self._overloaded = tablets, recomputer, metrics, overloaded
        self._due: dict[int, set[int]] = {}  # partition -> keys of items whose vectors have arrived
        self._wake = asyncio.Event()
        self._in_progress = 0

    def pending(self) -> int:
        """Number of items, over all tablets, with users that are not recomputed yet."""
        return self._in_progress + sum(map(len, self._due.values()))

    def arrived(self, items: Sequence[int]) -> None:
        """Schedule the users that wait for these items (item keys), whose vectors have arrived."""
        for tablet in self._tablets:
            self._add(tablet.partition, items)

    def restored(self, tablet: Tablet, known: Sequence[int]) -> None:
        """Schedule a restored tablet's users that wait for `known` items (item keys), and its users with profiles of the fallback encoder."""
        self._add(tablet.partition, [*known, FELL_BACK])

    def fell_back(self, partition: int) -> None:
        """Schedule a tablet's users with profiles of the fallback encoder. A worker without live events learns from this that the encoder is back."""
        self._add(partition, [FELL_BACK])

    def _add(self, partition: int, items: Iterable[int]) -> None:
        self._due.setdefault(partition, set()).update(items)
        self._wake.set()

    async def forever(self) -> None:
        """Recompute scheduled users in chunks. Never returns."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for partition in list(self._due):
                generation = self._tablets.generation
                tablet = None if generation is None else await self._tablets.ready(partition, generation)
                if tablet is not None:
                    await self._recompute_tablet(tablet, generation)
                elif generation is None or generation != self._tablets.generation:  # during a rebalance: try again after it
                    await asyncio.sleep(0.2)
                    self._wake.set()
                else:
                    self._due.pop(partition, None)

    async def _recompute_tablet(self, tablet: Tablet, generation: int | None) -> None:
        await self._wait_while_overloaded(generation)
        items = self._due.pop(tablet.partition, set())
        self._in_progress = len(items)
        try:
            if await self._recompute(tablet, items, generation):
                self._add(tablet.partition, items)
        except EncoderDown as down:
            self._add(tablet.partition, items)
            await self._tablets.wait_within_generation(generation, down.wait_s)
        finally:
            self._in_progress = 0

    async def _recompute(self, tablet: Tablet, items: set[int], generation: int | None) -> bool:
        """Run one pass. Returns whether users may be left, also when the generation passed, because this worker may get the tablet again."""
        async with tablet.lock:  # a batch in flight may still add waiting users
            if not self._tablets.holds(tablet, generation):
                return True
            by_user, more = await to_thread(_waiting_users, tablet, items)
        users = list(by_user)
        for start in range(0, len(users), CHUNK):
            await self._wait_while_overloaded(generation)
            chunk = users[start : start + CHUNK]
            async with self._recomputer.background_turn(tablet, generation) as held:
                if not held:
                    return True
                due = await self._recomputer.outdated(tablet, chunk)  # another owner may have recomputed them meanwhile
                if due and not await (await self._recomputer.recompute(tablet, due))[0]:
                    return True
                tablet.write(resolved=[(item, user) for user in chunk for item in by_user[user]])
            self._metrics.reencoded.inc(len(due))
            await asyncio.sleep(0)
        return more

    async def _wait_while_overloaded(self, generation: int | None) -> None:
        """Wait while the worker is overloaded."""
        while self._overloaded() and await self._tablets.wait_within_generation(generation, POLL_S):
            pass


def _waiting_users(tablet: Tablet, items: Iterable[int]) -> tuple[dict[bytes, list[bytes]], bool]:
    """Return user -> the items (8-byte keys) the user waits for, in at most PASS pairs; and whether there are more pairs."""
    by_user: dict[bytes, list[bytes]] = {}
    n = 0
    for item in map(key_bytes, items):
        for user in tablet.waiting(item):
            if n == PASS:
                return by_user, True
            by_user.setdefault(user, []).append(item)
            n += 1
    return by_user, False
