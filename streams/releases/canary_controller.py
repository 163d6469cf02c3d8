"""Ends a trial by the rules of `streams.releases.canary_rules`. One worker writes: the owner of partition 0, by what it saw of its own users.

Users are spread over partitions by a hash, so what one worker sees is a fair sample. When partition 0 changes hands its new owner decides by its own.
"""

import asyncio
import logging

from schemas.releases import Channel, Release, Rules, encode_release
from streams.core.clock import now_ms
from streams.releases.canary_rules import decide, figures
from streams.releases.hot_swap import Swapper
from streams.releases.online_eval import Observer
from streams.releases.release_log import ReleaseError, ended, promoted, trial
from streams.state.tablets import Tablets
from streams.transport.sender import Sender

log = logging.getLogger("currents.releases")
LOOK_S = 2.0


class Decider:
    """Looks at the figures of a canary now and then. A shadow is measured, and left to people."""

    def __init__(self, swapper: Swapper, observer: Observer, tablets: Tablets, sender: Sender, topic: str, by: str, rules: Rules) -> None:
        self._swapper, self._observer, self._tablets, self._sender, self._topic, self._by = swapper, observer, tablets, sender, topic, by
        self._rules = rules

    async def forever(self) -> None:
        """Without end."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> bool:
        """Write the record that ends the trial, if it is to end and this worker is the one to say so; whether it did."""
        tried, generation = trial(self._swapper.history), self._tablets.generation
        if tried is None or generation is None or self._tablets.get(0) is None:
            return False
        try:
            found = self._refused(tried) or self._judged(tried)
        except ReleaseError as error:
            log.error("%s", error)
            return False
        if found is None or not await self._tablets.may_publish(generation):
            return False
        channel, release = found
        await self._sender.send(self._topic, {0: [(channel.encode(), encode_release(release), now_ms())]})
        log.warning("candidate %s: %s: %s", tried.version, release.state, release.why)
        self._observer.trial = None
        await self._taken(tried)
        return True

    def _refused(self, tried: Release) -> tuple[Channel, Release] | None:
        """A candidate whose bundle this worker refuses for good would be on trial for ever."""
        why = self._swapper.refusal(tried)
        return None if why is None else ("candidate", ended(tried, self._by, why, now_ms(), {}, "refused"))

    def _judged(self, tried: Release) -> tuple[Channel, Release] | None:
        """What the figures of a canary say."""
        seen = self._observer.trial
        if tried.state != "canary" or seen is None or (seen.served, seen.tried) != (self._swapper.lineup.serving.version, tried.version):
            return None
        verdict = decide(seen, self._rules)
        measured, at = figures(seen, self._rules), now_ms()
        if verdict.action == "promote":
            return "serving", promoted(self._swapper.history, tried, seen.served, self._by, verdict.why, at, measured)
        return None if verdict.action == "watch" else ("candidate", ended(tried, self._by, verdict.why, at, measured))

    async def _taken(self, tried: Release) -> None:
        """Until the record is read here, so that it is written once."""
        while trial(self._swapper.history) == tried:
            await asyncio.sleep(0.1)
