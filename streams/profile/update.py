"""The agent of `currents.events`: folds events into windows and makes profiles of them. `commit` lists the order of effects."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.deadletters import encode_dead_letter, letter_of
from schemas.events import decode_event
from schemas.items import item_name
from schemas.profiles import by_version
from schemas.windows import fold, row_of
from streams.core.clock import now_ms
from streams.core.settings import Settings
from streams.monitoring.metrics import Metrics
from streams.profile.commit import Committer, Folded, Written
from streams.profile.encoding_thread import EncodingThread
from streams.profile.profiler import Profiler
from streams.releases.online_eval import Observer
from streams.state.tablet import Tablet, publish_in_order
from streams.state.tablets import Tablets
from streams.transport.agents import Finish, nothing
from streams.transport.faust_batches import RecordBatch
from streams.transport.sender import Row, Sender


class Updater:
    """Owns the processing of a record batch of `currents.events` up to acknowledged profiles. `observer` measures encoders on arriving events."""

    def __init__(
        self,
        settings: Settings,
        tablets: Tablets,
        profiler: Profiler,
        sender: Sender,
        committer: Committer,
        thread: EncodingThread,
        metrics: Metrics,
        observer: Observer | None = None,
    ) -> None:
        self._tablets, self._profiler, self._sender, self._committer, self._thread = tablets, profiler, sender, committer, thread
        self._metrics, self._observer = metrics, observer
        self._names, self._policy = {p.code: p.name for p in settings.platforms}, settings.encoding.policy
        self._dead = settings.topic("dead-letters")

    async def batches(self, batches: Sequence[RecordBatch]) -> Finish:
        """Run steps 1 to 3 for record batches of any partitions. The returned task runs steps 4 and 5 and returns the batches to ack (step 6).

        The next batches are folded while the task runs. A batch whose generation has passed is neither written nor acked.
        """
        began = time.perf_counter()
        async with contextlib.AsyncExitStack() as locks:
            tablets = await self._locked(batches, locks)
            current = [b for b in batches if tablets[b.partition] is not None and b.generation_id == self._tablets.generation]
            records: dict[Tablet, list[Any]] = {}
            for b in current:
                records.setdefault(tablets[b.partition], []).extend(b.value)  # type: ignore[arg-type]
            folded = await self._thread.run_patiently(self._fold, records) if records else None  # Step 1
            if folded is None:
                return nothing()
            dead: dict[int, list[Row]] = {t.partition: [(d.key, encode_dead_letter(d), d.at) for d in f.dead] for t, f in folded.items() if f.dead}
            await self._sender.send(self._dead, dead)  # Step 2
            written = await self._committer.store(folded)  # Step 3
            return await publish_in_order(list(folded), self._finish(current, records, folded, written, began))

    async def _locked(self, batches: Sequence[RecordBatch], locks: contextlib.AsyncExitStack) -> dict[int, Tablet | None]:
        """Return partition -> restored and locked tablet; None for a batch whose generation has passed."""
        while True:
            tablets = {b.partition: await self._tablets.ready(b.partition, b.generation_id) for b in batches}
            mine = [tablet for _, tablet in sorted(tablets.items()) if tablet is not None]
            await locks.enter_async_context(self._thread.turn)
            for tablet in mine:
                await locks.enter_async_context(tablet.lock)
            if all(tablet.restored.is_set() for tablet in mine):
                return tablets
            await locks.aclose()  # the previous batch saw foreign rows in a tablet's changelog: wait for the restore

    async def _finish(
        self, batches: list[RecordBatch], records: dict[Tablet, list[Any]], folded: dict[Tablet, Folded], written: Written, began: float
    ) -> list[RecordBatch]:
        """Publish the rows, then update metrics. Returns the batches to ack."""
        if not await self._committer.publish(written):  # Steps 4 and 5
            return []
        self._metrics.batch_seconds.observe(time.perf_counter() - began)
        self._count([r for tablet in folded for r in records[tablet]], list(folded.values()))
        if self._observer is not None:
            if cases := [c for f in folded.values() for c in f.cases]:
                self._thread.submit(self._observer.measure, cases)
            if self._observer.due():
                self._thread.submit(self._observer.time, [w for f in folded.values() for w in f.windows])
        return batches

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
            before = tablet.windows(out.users)
            out.windows = [fold(window, rows, self._policy) for window, rows in zip(before, by_user.values(), strict=True)]
            if self._observer is not None:
                out.cases = self._observer.cases(tablet, out.users, before, list(by_user.values()), now_ms())
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
