"""Recomputes profiles without a new event: for unpublished users, late items, after the fallback encoder, for another encoder."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from schemas.profiles import decode_profile
from streams.core.clock import now_ms
from streams.monitoring.metrics import Metrics
from streams.profile.commit import Committer, Folded
from streams.profile.encoding_thread import EncodingThread
from streams.profile.profiler import Profiler
from streams.state.tablet import Tablet
from streams.state.tablets import Tablets

CHUNK = 500  # users; live events wait for one chunk at most


class Recomputer:
    """Owns the making of profiles from the windows that a tablet stores."""

    def __init__(self, tablets: Tablets, profiler: Profiler, committer: Committer, thread: EncodingThread, metrics: Metrics) -> None:
        self._tablets, self._profiler, self._committer, self._thread, self._metrics = tablets, profiler, committer, thread, metrics

    async def republish(self, tablet: Tablet, users: list[bytes]) -> bool:
        """Encode and publish unpublished users of a tablet from the tablet's windows. Returns False if the generation passed meanwhile."""
        generation = self._tablets.generation
        for start in range(0, len(users), CHUNK):
            async with tablet.lock:
                if generation is None or self._tablets.generation != generation:
                    return False
                folded = await self._thread.run_patiently(self._make, tablet, users[start : start + CHUNK])
                if folded is None or not await (await self._committer.commit({tablet: folded})):
                    return False
            self._metrics.repaired.inc(len(folded.users))
        return True

    @contextlib.asynccontextmanager
    async def background_turn(self, tablet: Tablet, generation: int | None) -> AsyncIterator[bool]:
        """Take a turn on the encoding thread, after waiting live events, and the tablet's lock. Users of the tablet may be recomputed in the turn.

        Yields whether the tablet is restored and belongs to this worker in that generation.
        """
        async with self._thread.turn, tablet.lock:
            yield self._tablets.holds(tablet, generation)

    async def outdated(self, tablet: Tablet, users: list[bytes]) -> list[bytes]:
        """Return the users whose profile is outdated, as `Profiler.outdated` defines it. Call it in a `background_turn`."""
        found: list[bytes] = await self._thread.run(self._outdated, tablet, users)
        return found

    def _outdated(self, tablet: Tablet, users: list[bytes]) -> list[bytes]:
        found = [(u, w) for u, w in zip(users, tablet.windows(users), strict=True) if w]
        return [u for u, w in found if self._profiler.outdated(u, w, tablet.profile(u))]

    async def recompute(self, tablet: Tablet, users: list[bytes]) -> "tuple[asyncio.Task[bool], float]":
        """Encode users of a tablet, never with the fallback encoder. Call it in a `background_turn`. Raises EncoderDown.

        Returns the publishing task and the seconds that encoding took, without waiting. The task returns False if the worker lost the tablet.
        """
        folded, seconds = await self._thread.run(self._timed, tablet, users)
        folded.windows = []  # unchanged
        return await self._committer.commit({tablet: folded}), seconds

    def _timed(self, tablet: Tablet, users: list[bytes]) -> tuple[Folded, float]:
        began = time.perf_counter()
        return self._make(tablet, users, True), time.perf_counter() - began

    def _make(self, tablet: Tablet, users: list[bytes], strict: bool = False) -> Folded:
        found = [(u, w) for u, w in zip(users, tablet.windows(users), strict=True) if w]
        out = Folded(users=[u for u, _ in found], windows=[w for _, w in found], unpublished=users)
        if found:
            at = now_ms()
            received = [_received(tablet.profile(u), at) for u in out.users]
            out.profiles, out.waiting = self._profiler(out.users, out.windows, received, at, strict)
        return out


def _received(profile: bytes | None, at_ms: int) -> int:
    """Return `received_at` of the stored profile; `at_ms` if it is unknown."""
    try:
        return decode_profile(profile).received_at if profile else at_ms
    except ValueError:  # bad interests: a restore checks all other fields
        return at_ms
