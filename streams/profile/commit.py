"""Writes new windows and profiles to RocksDB and publishes them to the changelogs.

An update has its effects in this order. Each step carries its number where it happens, here and in `update`:

    Step 1: fold and encode, on the encoding thread
    Step 2: dead letters of the batch, acknowledged by the brokers
    Step 3: RocksDB: windows, profiles and notes of a tablet in one write
    Step 4: the changelogs of windows and of profiles, acknowledged by the brokers
    Step 5: RocksDB: the changelogs' offsets; users of the batch are no longer unpublished
    Step 6: the source offsets are acked

A crash between two steps loses nothing: the source offsets are acked last, so Kafka delivers the events again, and folding is idempotent.
A replay that changes nothing still writes and publishes its rows, because RocksDB can be ahead of the changelogs after a crash.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.deadletters import DeadLetter
from streams.core.cancel import to_thread
from streams.core.clock import now_ms
from streams.core.fault_points import point
from streams.core.settings import Settings
from streams.monitoring.metrics import Metrics
from streams.releases.online_eval import Case
from streams.state.tablet import FALLBACK, UNPUBLISHED, Tablet, publish_in_order
from streams.state.tablets import Tablets
from streams.transport.sender import Row, Sender


@dataclass
class Folded:
    """Owns the new rows of one tablet before they are written."""

    users: list[bytes] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    windows: list[bytes] = field(default_factory=list)
    """One window per user; empty if no window changes."""
    profiles: list[bytes] = field(default_factory=list)
    waiting: list[tuple[bytes, bytes]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    events: int = 0
    unchanged: int = 0
    made: dict[str, list[int]] = field(default_factory=dict)
    """Encoder version -> indices of the profiles that this encoder made."""
    unpublished: list[bytes] = field(default_factory=list)
    """Users to mark as unpublished. Kafka does not deliver their events again, so only this mark gets their rows republished after a failure."""


class Written(NamedTuple):
    """Owns rows that are in RocksDB and not yet in the changelogs."""

    unpublished: dict[Tablet, list[bytes]]
    """The unpublished users of each tablet."""
    rows: dict[str, dict[int, list[Row]]]
    """Topic -> partition -> rows."""
    at_ms: int
    generation: int | None


class Committer:
    """Owns steps 3 to 5. Calls `fell_back` with the partition of a tablet after writing profiles of the fallback encoder to this tablet."""

    def __init__(
        self, settings: Settings, tablets: Tablets, sender: Sender, metrics: Metrics, fell_back: Callable[[int], None] = lambda partition: None
    ) -> None:
        self._windows, self._profiles = settings.topic("windows"), settings.topic("profiles")
        self._tablets, self._sender, self._metrics, self._fell_back = tablets, sender, metrics, fell_back

    async def commit(self, folded: dict[Tablet, Folded]) -> "asyncio.Task[bool]":
        """Run step 3 and return a task for steps 4 and 5. The task returns False if nothing was published. The caller holds the tablets' `lock`."""
        return await publish_in_order(list(folded), self.publish(await self.store(folded)))

    async def store(self, folded: dict[Tablet, Folded]) -> Written:
        """Step 3: write each tablet's rows to RocksDB in one write."""
        at, generation = now_ms(), self._tablets.generation
        windows: dict[int, list[Row]] = {}
        profiles: dict[int, list[Row]] = {}
        for tablet, f in folded.items():
            new = list(zip(f.users, f.windows, strict=True)) if f.windows else []
            made = list(zip(f.users, f.profiles, strict=True))
            await to_thread(tablet.write, new, made, [*((UNPUBLISHED, user) for user in f.unpublished), *f.waiting])
            if f.waiting and f.waiting[-1][0] == FALLBACK:
                self._fell_back(tablet.partition)
            windows[tablet.partition] = [(k, v, at) for k, v in new]
            profiles[tablet.partition] = [(k, v, at) for k, v in made]
            self._metrics.profiles.inc(len(made))
        point("after-rocksdb")
        return Written({tablet: f.unpublished for tablet, f in folded.items()}, {self._windows: windows, self._profiles: profiles}, at, generation)

    async def publish(self, written: Written) -> bool:
        """Run steps 4 and 5. Publishes nothing and returns False if another worker may own the tablets by now."""
        if not await self._tablets.may_publish(written.generation):
            return False
        point("in-publish")
        last = await self._sender.send_all(written.rows)  # Step 4
        point("after-changelog")
        for topic, parts in last.items():  # Step 5, from here on
            for tablet in written.unpublished:
                if (offset := parts.get(tablet.partition)) is not None:
                    self._tablets.published(tablet, topic, len(written.rows[topic][tablet.partition]), offset, written.at_ms)
        for tablet, users in written.unpublished.items():
            if users:
                tablet.write(resolved=[(UNPUBLISHED, user) for user in users])
        return True
