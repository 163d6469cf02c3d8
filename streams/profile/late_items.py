"""Recomputes users without an event of their own: their items' vectors came late, or the fallback encoder made their profiles.

The first work that is shed under load: while many live events wait, no user is recomputed.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from streams.core.cancel import to_thread
from streams.monitoring.metrics import Metrics
from streams.profile.encoder_guard import EncoderDown
from streams.profile.recompute import CHUNK, Recomputer
from streams.state.tablet import FALLBACK, Tablet, key_bytes
from streams.state.tablets import Tablets

PASS = 20_000  # pairs of item and user that are looked up at once
LOOK_S = 0.1  # between looks at whether live events still wait
FELL_BACK = int.from_bytes(FALLBACK, "big")


class LateItems:
    """Owns which users wait for an item's vector, or for the encoder, and recomputes them. `overloaded`: whether too many live events wait."""

    def __init__(self, tablets: Tablets, recomputer: Recomputer, metrics: Metrics, overloaded: Callable[[], bool]) -> None:
        self._tablets, self._recomputer, self._metrics, self._overloaded = tablets, recomputer, metrics, overloaded
        self._due: dict[int, set[int]] = {}  # partition -> keys of items whose vectors have come
        self._wake = asyncio.Event()
        self._doing = 0

    def pending(self) -> int:
        """Items whose users have not all been encoded again yet, all tablets together."""
        return self._doing + sum(map(len, self._due.values()))

    def arrived(self, items: Sequence[int]) -> None:
        """Item vectors came."""
        for tablet in self._tablets:
            self._add(tablet.partition, items)

    def restored(self, tablet: Tablet, known: Sequence[int]) -> None:
        """A tablet came up: items that it waits for and that are known by now; and maybe users of the fallback."""
        self._add(tablet.partition, [*known, FELL_BACK])

    def fell_back(self, partition: int) -> None:
        """The fallback made profiles of a tablet. To encode their users again is also how a quiet worker finds out that the encoder is back."""
        self._add(partition, [FELL_BACK])

    def _add(self, partition: int, items: Iterable[int]) -> None:
        self._due.setdefault(partition, set()).update(items)
        self._wake.set()

    async def forever(self) -> None:
        """Encode again, a few users at a time, whenever there are any."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for partition in list(self._due):
                generation = self._tablets.generation
                tablet = None if generation is None else await self._tablets.ready(partition, generation)
                if tablet is not None:
                    await self._tablet(tablet, generation)
                elif generation is None or generation != self._tablets.generation:  # on the move: try again when it has settled
                    await asyncio.sleep(0.2)
                    self._wake.set()
                else:
                    self._due.pop(partition, None)

    async def _tablet(self, tablet: Tablet, generation: int | None) -> None:
        await self._turn(generation)
        items = self._due.pop(tablet.partition, set())
        self._doing = len(items)
        try:
            if await self._recompute(tablet, items, generation):
                self._add(tablet.partition, items)
        except EncoderDown as down:
            self._add(tablet.partition, items)
            await self._tablets.wait_within_generation(generation, down.wait_s)
        finally:
            self._doing = 0

    async def _recompute(self, tablet: Tablet, items: set[int], generation: int | None) -> bool:
        """One pass; whether there may be more, as when the generation passed: the tablet may be here again."""
        async with tablet.lock:  # a batch in flight may be about to note that it waits
            if not self._tablets.holds(tablet, generation):
                return True
            by_user, more = await to_thread(_waiting, tablet, items)
        users = list(by_user)
        for start in range(0, len(users), CHUNK):
            await self._turn(generation)
            chunk = users[start : start + CHUNK]
            async with self._recomputer.background_turn(tablet, generation) as mine:
                if not mine:
                    return True
                due = await self._recomputer.outdated(tablet, chunk)  # another worker may have had the tablet since, and encoded them
                if due and not await (await self._recomputer.recompute(tablet, due))[0]:
                    return True
                tablet.write(resolved=[(item, user) for user in chunk for item in by_user[user]])
            self._metrics.reencoded.inc(len(due))
            await asyncio.sleep(0)
        return more

    async def _turn(self, generation: int | None) -> None:
        """Wait while the worker is overloaded."""
        while self._overloaded() and await self._tablets.wait_within_generation(generation, LOOK_S):
            pass


def _waiting(tablet: Tablet, items: Iterable[int]) -> tuple[dict[bytes, list[bytes]], bool]:
    """Users who wait for some of the items, each with these (8-byte keys), at most PASS pairs; and whether there are more."""
    by_user: dict[bytes, list[bytes]] = {}
    n = 0
    for item in map(key_bytes, items):
        for user in tablet.waiting(item):
            if n == PASS:
                return by_user, True
            by_user.setdefault(user, []).append(item)
            n += 1
    return by_user, False
