"""Agent: events → windows → profiles. And the same again for users whose profiles have to be made anew."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from schemas.deadletters import DeadLetter, encode_dead_letter, letter_of
from schemas.events import decode_event
from schemas.items import item_name
from schemas.profiles import by_version, decode_profile
from schemas.windows import fold, row_of
from streams.core.cancel import to_thread
from streams.core.clock import now_ms
from streams.core.fault_points import point
from streams.core.settings import Settings
from streams.monitoring.metrics import Metrics
from streams.profile.encoder_guard import EncoderDown
from streams.profile.profiler import Profiler
from streams.releases.online_eval import Case, Observer
from streams.state.tablets import FALLBACK, OWED, Tablet, Tablets, in_turn
from streams.transport.faust_app import Finish, nothing
from streams.transport.faust_batches import RecordBatch
from streams.transport.sender import Row, Sender

log = logging.getLogger("currents.update")
CHUNK = 500  # users: small, so that live events wait little


@dataclass
class Folded:
    """What one batch makes of a tablet, before anything is written."""

    users: list[bytes] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    windows: list[bytes] = field(default_factory=list)
    profiles: list[bytes] = field(default_factory=list)
    waiting: list[tuple[bytes, bytes]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    events: int = 0
    unchanged: int = 0
    made: dict[str, list[int]] = field(default_factory=dict)
    """Encoder's version -> places of the profiles that it made."""
    owed: list[bytes] = field(default_factory=list)
    """Users whose rows are lost to the changelogs if they do not get there now: events come again, these do not."""


class Written(NamedTuple):
    """Rows that are in RocksDB and not yet in the changelogs."""

    owed: dict[Tablet, list[bytes]]
    """Tablets, and who is owed in each until the rows are there."""
    rows: dict[str, dict[int, list[Row]]]
    """By topic and partition."""
    at_ms: int
    generation: int | None


class Updater:
    """Everything between a record batch of `currents.events` and its acknowledged profiles."""

    def __init__(self, settings: Settings, tablets: Tablets, profiler: Profiler, sender: Sender, metrics: Metrics, pool: Executor) -> None:
        self._settings, self._tablets, self._profiler, self._sender, self._metrics, self._pool = settings, tablets, profiler, sender, metrics, pool
        self._names = {p.code: p.name for p in settings.platforms}
        self._windows, self._profiles, self._dead = settings.topic("windows"), settings.topic("profiles"), settings.topic("dead-letters")
        self.turn = asyncio.Lock()
        """Whose rows are being made: live events', or a chunk of users' who are encoded again. In order, so that live events wait for one chunk."""
        self.observer: Observer | None = None
        self.fell_back: Callable[[int], None] = lambda partition: None
        """Called with the partition of a tablet in which the fallback's profiles were written."""

    async def batches(self, batches: Sequence[RecordBatch]) -> "Finish":
        """Fold record batches, of any partitions. What it returns gives those that may be acked: one whose generation has passed is neither
        written nor acked.

        1 fold and encode (thread)  2 RocksDB: windows and profiles of a tablet in one write  3 changelogs, brokers' acks awaited.
        It returns after 2: while 3 is under way the next batches are folded. Rows are written also when a replay changed nothing: after a crash
        RocksDB can be ahead of the changelog.
        """
        began = time.perf_counter()
        async with contextlib.AsyncExitStack() as locks:
            tablets = await self._locked(batches, locks)
            current = [b for b in batches if tablets[b.partition] is not None and b.generation_id == self._tablets.generation]
            records: dict[Tablet, list[Any]] = {}
            for b in current:
                records.setdefault(tablets[b.partition], []).extend(b.value)  # type: ignore[arg-type]
            folded = await self._patiently(self._fold, records) if records else None
            if folded is None:
                return nothing()
            dead: dict[int, list[Row]] = {t.partition: [(d.key, encode_dead_letter(d), d.at) for d in f.dead] for t, f in folded.items() if f.dead}
            await self._sender.send(self._dead, dead)
            written = await self._store(folded)
            return await in_turn(list(folded), self._finish(current, records, folded, written, began))

    async def _locked(self, batches: Sequence[RecordBatch], locks: contextlib.AsyncExitStack) -> dict[int, Tablet | None]:
        """The tablets of some batches, restored and locked; None for one whose generation has passed."""
        while True:
            tablets = {b.partition: await self._tablets.ready(b.partition, b.generation_id) for b in batches}
            mine = [tablet for _, tablet in sorted(tablets.items()) if tablet is not None]
            await locks.enter_async_context(self.turn)
            for tablet in mine:
                await locks.enter_async_context(tablet.lock)
            if all(tablet.restored.is_set() for tablet in mine):
                return tablets
            await locks.aclose()  # one is distrusted since: the batch before found another worker's rows in its changelog

    async def _finish(
        self, batches: list[RecordBatch], records: dict[Tablet, list[Any]], folded: dict[Tablet, Folded], written: "Written", began: float
    ) -> list[RecordBatch]:
        if not await self._publish(written):
            return []
        self._metrics.batch_seconds.observe(time.perf_counter() - began)
        self._count([r for tablet in folded for r in records[tablet]], list(folded.values()))
        if self.observer is not None:
            if cases := [c for f in folded.values() for c in f.cases]:
                self._pool.submit(self.observer.measure, cases)
            if self.observer.due():
                self._pool.submit(self.observer.time, [w for f in folded.values() for w in f.windows])
        return batches

    async def _write(self, folded: dict[Tablet, Folded]) -> "asyncio.Task[bool]":
        """Effect 2, and 3 begun; that gives False if the tablets may be another worker's by now: nothing was published."""
        return await in_turn(list(folded), self._publish(await self._store(folded)))

    async def _store(self, folded: dict[Tablet, Folded]) -> "Written":
        """Effect 2."""
        at, generation = now_ms(), self._tablets.generation
        windows: dict[int, list[Row]] = {}
        profiles: dict[int, list[Row]] = {}
        for tablet, f in folded.items():
            new = list(zip(f.users, f.windows, strict=True)) if f.windows else []
            made = list(zip(f.users, f.profiles, strict=True))
            await to_thread(tablet.write, new, made, [*((OWED, user) for user in f.owed), *f.waiting])
            if f.waiting and f.waiting[-1][0] == FALLBACK:
                self.fell_back(tablet.partition)
            windows[tablet.partition] = [(k, v, at) for k, v in new]
            profiles[tablet.partition] = [(k, v, at) for k, v in made]
            self._metrics.profiles.inc(len(made))
        point("after-rocksdb")
        return Written({tablet: f.owed for tablet, f in folded.items()}, {self._windows: windows, self._profiles: profiles}, at, generation)

    async def _publish(self, written: "Written") -> bool:
        """Effect 3."""
        if not await self._tablets.may_publish(written.generation):
            return False
        point("in-publish")
        last = await self._sender.send_all(written.rows)
        point("after-changelog")
        for topic, parts in last.items():
            for tablet in written.owed:
                if (offset := parts.get(tablet.partition)) is not None:
                    self._tablets.published(tablet, topic, len(written.rows[topic][tablet.partition]), offset, written.at_ms)
        for tablet, users in written.owed.items():
            if users:
                tablet.write(arrived=[(OWED, user) for user in users])
        return True

    def _fold(self, records: dict[Tablet, list[Any]]) -> dict[Tablet, Folded]:
        with self._metrics.encode_seconds.time():
            folded = {tablet: self._fold_one(tablet, rows) for tablet, rows in records.items()}
            users = [u for f in folded.values() for u in f.users]
            if users:
                windows = [w for f in folded.values() for w in f.windows]
                received = [r for f in folded.values() for r in f.received]
                profiles, waiting = self._profiler(users, windows, received, now_ms())
                at = 0
                for f in folded.values():
                    f.profiles = profiles[at : at + len(f.users)]
                    at += len(f.users)
                    f.made = by_version(f.profiles)
                    mine = set(f.users)
                    f.waiting = [pair for pair in waiting if pair[1] in mine]
            return folded

    def _fold_one(self, tablet: Tablet, records: Sequence[Any]) -> Folded:
        out = Folded()
        by_user: dict[bytes, list[bytes]] = {}
        received: dict[bytes, int] = {}
        for record in records:
            try:
                event = decode_event(record.value or b"")
                if record.key != event.user_id.encode():
                    raise ValueError(f"key {record.key!r:.100} is not the user {event.user_id!r:.100}")
                platform = self._names[event.platform]
            except (ValueError, KeyError) as error:
                detail = f"no platform with code {error}" if isinstance(error, KeyError) else str(error)
                out.dead.append(letter_of(record, "not-unified", detail, "", now_ms()))
                continue
            by_user.setdefault(record.key, []).append(row_of(event, item_name(platform, event.item_id)))
            received[record.key] = record.timestamp
        out.events = len(records) - len(out.dead)
        if by_user:
            out.users, out.received = list(by_user), list(received.values())
            policy = self._settings.encoding.policy
            before = tablet.windows(out.users)
            out.windows = [fold(window, rows, policy) for window, rows in zip(before, by_user.values(), strict=True)]
            if self.observer is not None:
                out.cases = self.observer.cases(tablet, out.users, before, list(by_user.values()), now_ms())
            out.unchanged = sum(a == b for a, b in zip(before, out.windows, strict=True))
        return out

    def _count(self, records: Sequence[Any], folded: Sequence[Folded]) -> None:
        m, now = self._metrics, now_ms()
        m.folded.inc(sum(f.events for f in folded))
        m.unchanged.inc(sum(f.unchanged for f in folded))
        m.batch_events.observe(len(records))
        m.age.observe(now - np.array([r.timestamp for r in records], float))
        received: dict[str, list[int]] = {}
        for f in folded:
            for version, at in f.made.items():
                received.setdefault(version, []).extend(f.received[i] for i in at)
        for version, at in received.items():
            m.profile_age(version).observe(now - np.array(at, float))
        for letter in (d for f in folded for d in f.dead):
            m.dead.labels(letter.platform, letter.reason).inc()

    async def _patiently(self, function: Any, *arguments: Any) -> Any:
        """The same, again and again while the encoder is down: the batch waits, and with it everything behind. None once the generation passed."""
        generation = self._tablets.generation
        while True:
            try:
                return await self._run(function, *arguments)
            except EncoderDown as down:
                if not await self._tablets.still(generation, down.wait_s):
                    return None

    async def _run(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    # Users whose profiles are made again

    async def repair(self, tablet: Tablet, users: list[bytes]) -> bool:
        """Publish a tablet's own rows of users again whose last rows in the changelogs are not right; False if the tablet went."""
        generation = self._tablets.generation
        for start in range(0, len(users), CHUNK):
            async with tablet.lock:
                if generation is None or self._tablets.generation != generation:
                    return False
                folded = await self._patiently(self._again, tablet, users[start : start + CHUNK])
                if folded is None or not await (await self._write({tablet: folded})):
                    return False
            self._metrics.repaired.inc(len(folded.users))
        return True

    @contextlib.asynccontextmanager
    async def behind(self, tablet: Tablet, generation: int | None) -> AsyncIterator[bool]:
        """A turn, behind live events, in which users of a tablet may be encoded again: whether it is still this generation's, and restored."""
        async with self.turn, tablet.lock:
            yield self._tablets.holds(tablet, generation)

    async def outdated(self, tablet: Tablet, users: list[bytes]) -> list[bytes]:
        """Those of some users whose profile would say more if it was made now. Call it `behind`."""
        return await self._run(self._outdated, tablet, users)  # type: ignore[no-any-return]

    def _outdated(self, tablet: Tablet, users: list[bytes]) -> list[bytes]:
        found = [(u, w) for u, w in zip(users, tablet.windows(users), strict=True) if w]
        return [u for u, w in found if self._profiler.outdated(u, w, tablet.profile(u))]

    async def again(self, tablet: Tablet, users: list[bytes]) -> "tuple[asyncio.Task[bool], float]":
        """Encode users of a tablet again, by no fallback. Call it `behind`. Raises EncoderDown.

        Returns what publishes them, and gives False if the tablet went; and the seconds that encoding took, without the wait for its turn.
        """
        folded, seconds = await self._run(self._timed, tablet, users)
        folded.windows = []  # they are as they were
        return await self._write({tablet: folded}), seconds

    def _timed(self, tablet: Tablet, users: list[bytes]) -> tuple[Folded, float]:
        began = time.perf_counter()
        return self._again(tablet, users, True), time.perf_counter() - began

    def _again(self, tablet: Tablet, users: list[bytes], strict: bool = False) -> Folded:
        found = [(u, w) for u, w in zip(users, tablet.windows(users), strict=True) if w]
        out = Folded(users=[u for u, _ in found], windows=[w for _, w in found], owed=users)
        if found:
            at = now_ms()
            received = [_received(tablet.profile(u), at) for u in out.users]
            out.profiles, out.waiting = self._profiler(out.users, out.windows, received, at, strict)
        return out


def _received(profile: bytes | None, at_ms: int) -> int:
    """`received_at` of the profile that is written again."""
    return decode_profile(profile).received_at if profile else at_ms
