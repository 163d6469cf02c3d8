"""One worker: everything that runs in its process, started in order and stopped in reverse."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from encoder.baseline import Baseline
from encoder.features import UNKNOWN
from encoder.runtime import Encoder
from encoder.towers import load_tower
from streams.core.fault_points import point
from streams.core.process import claim, frozen, listen, one_thread, tuned
from streams.core.settings import Settings
from streams.core.tasks import Tasks, signalled, until
from streams.ingest.normalise import Normaliser
from streams.monitoring.metrics import Metrics
from streams.processes.worker_releases import Lifecycle
from streams.processes.worker_source import WorkerSource
from streams.profile.encoder_guard import Guard
from streams.profile.late_items import Late
from streams.profile.profiler import Profiler, style_of
from streams.profile.update import Updater
from streams.releases.release_log import Announced, read_history
from streams.serve.ranking import Ranker
from streams.serve.server import serve
from streams.state.followers import follow_items
from streams.state.item_store import load_items
from streams.state.restore import restore
from streams.state.tablets import Tablet, Tablets
from streams.transport.faust_app import Finish, Handle, add_agent, make_app
from streams.transport.faust_batches import RecordBatch
from streams.transport.reading import answers
from streams.transport.sender import Sender
from streams.transport.topics import prepare

log = logging.getLogger("currents.worker")
STOP_TIMEOUT_S = 20.0
ANSWER_S = 2.0  # for a broker, before the group is left
PRESSED = 4  # live events press when more than a quarter of the largest batch waits


class Worker:
    """A running worker. Use it through `running`."""

    def __init__(self, settings: Settings, releases: Sequence[Announced] = ()) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._lock = claim(settings.worker.data_dir)
        self.tower = load_tower(settings.encoding.tower)
        self.mapping_pool = ThreadPoolExecutor(1, "map")
        self.encoding_pool = ThreadPoolExecutor(1, "encode")
        self.portrait_pool = ThreadPoolExecutor(1, "portrait")
        folder, w = Path(settings.worker.data_dir), settings.worker
        self.store = load_items(folder / "items", self.tower.space_id, self.tower.dims)
        self.lifecycle = Lifecycle(settings, releases, self.tower, self.store, self.encoding_pool, self.metrics)
        self.socket = listen(settings.query.host, settings.query.port)
        host, port = self.socket.getsockname()[:2]
        self.url = settings.query.url or f"http://{host}:{port}"
        self.app = make_app(settings, self.url)
        self.tablets = Tablets(folder, w.cache_mb, w.write_buffer_mb, self.app.is_member)
        self.sender = Sender(lambda: self.app.producer._ensure_producer())  # noqa: PLW0108 - Faust has none before it starts
        lifecycle, e = self.lifecycle, settings.encoding
        self.spare = Baseline(self.tower.dims, self.tower.space_id)
        fallback = self.spare if e.fallback == "baseline" else None
        failures = self.metrics.encoder_failures
        self.guard = Guard(fallback, e.fallback_after_s, lambda version: failures.labels(version).inc(), self.metrics.fallback.inc)
        self.profiler = Profiler(
            lifecycle.lineup, self.store, style_of(settings), e.policy, self.guard, lifecycle.candidate_failed, self.portrait_pool
        )
        self.updater = Updater(settings, self.tablets, self.profiler, self.sender, self.metrics, self.encoding_pool)
        self.late = Late(self.tablets, self.updater, self.metrics, self.pressed)
        self.updater.fell_back = self.late.fell_back
        self.reencoder = lifecycle.join(self.tablets, self.updater, self.sender, self.pressed, self.url)
        self.ranker = Ranker(self.store, self.tower, self._encoder_of, self.encoding_pool)
        self.normaliser = Normaliser(settings, self.tower, self.sender, self.metrics, self.mapping_pool, lifecycle.drift.records)
        self.items_ready = asyncio.Event()
        self._tasks = Tasks()
        self.failed, self.spawn, self.fail = self._tasks.failed, self._tasks.spawn, self._tasks.fail
        self._stopping = False
        self._add_agents()
        self._add_gauges()

    @property
    def encoder(self) -> Encoder:
        """The one that serves."""
        return self.lifecycle.lineup().serving

    def _encoder_of(self, space_id: str) -> Encoder | None:
        """Who projects items for profiles of a space: also for those that the fallback made."""
        return self.lifecycle.lineup().of_space(space_id) or (self.spare if space_id == self.spare.space_id else None)

    # Agents and the group

    def _add_agents(self) -> None:
        def of(platform: str, work: Callable[[str, list[RecordBatch]], Awaitable[None]]) -> Handle:
            async def finish(current: list[RecordBatch]) -> list[RecordBatch]:
                await work(platform, current)
                return [b for b in current if b.generation_id == self.app.consumer_generation_id]

            async def handle(batches: list[RecordBatch]) -> Finish:
                return asyncio.create_task(finish([b for b in batches if b.generation_id == self.app.consumer_generation_id]))

            return handle

        limits = self.settings.worker.max_poll_records, self.settings.worker.linger_ms / 1000
        add_agent(self.app, self.settings.topic("events"), "update", self.updater.batches, *limits)
        for p in self.settings.platforms:
            add_agent(self.app, p.topic, f"normalise-{p.name}", of(p.name, self.normaliser.events), *limits)
            if p.items_topic:
                add_agent(self.app, p.items_topic, f"items-{p.name}", of(p.name, self.normaliser.items), *limits)

        async def revoked(app: Any, partitions: Any, **_: Any) -> None:
            await self.tablets.freeze()
            point("in-rebalance")

        async def assigned(app: Any, partitions: Any, **_: Any) -> None:
            point("in-rebalance")
            topic = self.settings.topic("events")
            mine = {tp.partition for tp in partitions if tp.topic == topic}
            log.info("generation %d: tablets %s", self.app.consumer_generation_id, sorted(mine))
            for tablet in self.tablets.assign(mine, self.app.consumer_generation_id):
                again(tablet)

        def again(tablet: Tablet) -> None:
            tablet.restore_by(lambda: self._restore(tablet), self.spawn)

        self.tablets.distrusted = again

        self.app.on_partitions_revoked.connect(revoked, weak=False)
        self.app.on_partitions_assigned.connect(assigned, weak=False)

    async def _restore(self, tablet: Tablet) -> None:
        await self.items_ready.wait()
        await tablet.idle()  # what was under way when the tablet was distrusted
        topics = (self.settings.topic("windows"), self.settings.topic("profiles"))
        policy, count = self.settings.encoding.policy, self.metrics.restored.inc
        by_look = self.encoder.version == self.spare.version or self.settings.releases.reencode_per_s  # whom the fallback left is found anyway
        spare = None if by_look else self.spare.version
        while True:
            tablet.strange = False
            wrong = await restore(tablet, self.tablets, self.settings.kafka, topics, self.store.table, policy, count, spare)
            if wrong and not await self.updater.repair(tablet, wrong):
                return
            if not tablet.strange:  # else another worker's rows came in between
                break
        tablet.restored.set()
        known = [int.from_bytes(k, "big") for k in tablet.awaited()]
        rows = self.store.table.index(np.array(known, np.uint64))
        self.reencoder.restored(tablet)
        self.late.restored(tablet, [k for k, row in zip(known, rows, strict=True) if row != UNKNOWN])

    def _add_gauges(self) -> None:
        m, tablets = self.metrics, self.tablets

        m.gauge("currents_users", "Users with a profile here (RocksDB's estimate)", lambda: tablets.total("users"))
        m.gauge("currents_rocksdb_disk_bytes", "RocksDB on disk", lambda: tablets.total("disk"))
        m.gauge("currents_rocksdb_memory_bytes", "RocksDB memtables", lambda: tablets.total("memory"))
        m.gauge("currents_items_known", "Items with a vector", lambda: self.store.table.size - 1)
        m.gauge("currents_tablets", "Tablets of this worker", lambda: sum(1 for _ in tablets))
        m.gauge("currents_lag_records", "Records assigned to this worker and not yet acked", self.lag)
        m.gauge("currents_encoder_failing_seconds", "For how long the encoder has failed; 0 while it works", self.guard.failing_s)
        m.gauge("currents_late_items", "Items whose users are to be encoded again", self.late.pending)
        m.gauge("currents_out_of_range", "Partitions whose log did not have the group's offset", lambda: self.app.consumer.out_of_range)
        m.gauge("currents_lost_batches", "Batches that Faust lost and that were read again", lambda: self.app.lost_batches)

    def lag(self) -> float:
        """Records of all assigned partitions that are not acked yet; 0 while there are none."""
        if self.tablets.generation is None:
            return 0
        return sum(self.app.lag(tp) or 0 for tp in self.app.consumer.assignment())

    def pressed(self) -> bool:
        """Whether unified events wait, more than a large part of one batch: then whoever is encoded again has to."""
        if self.tablets.generation is None:
            return False
        topic, most = self.settings.topic("events"), self.settings.worker.max_poll_records // PRESSED
        return sum(self.app.lag(tp) or 0 for tp in self.app.consumer.assignment() if tp.topic == topic) > most

    def ready(self) -> bool:
        """Whether every tablet is restored."""
        return self.tablets.generation is not None and all(t.restored.is_set() for t in self.tablets)

    # Lifecycle

    async def start(self) -> None:
        """Endpoint first, so that reads are answered with 503 from the start; then items, then the group."""
        source = WorkerSource(
            self.settings,
            self.metrics,
            self.tablets,
            self.app,
            self.url,
            self.ranker,
            self.reencoder,
            self.guard,
            self.lifecycle,
            self._tasks,
            self.ready,
        )
        self.spawn(serve(source, self.socket))
        topic, n = self.settings.topic("item-vectors"), self.settings.worker.partitions
        self.spawn(follow_items(self.settings.kafka, topic, n, self.store, self.encoding_pool, self.items_ready, self.late.arrived))
        self.spawn(self.late.forever())
        for task in self.lifecycle.tasks():
            self.spawn(task)
        self.spawn(self.tablets.flush_forever())
        self.app.finalize()
        await self.app.start()
        self.spawn(self._watch())
        self.spawn(frozen(self.ready))

    async def _watch(self) -> None:
        await self.app.wait_until_stopped()
        if self._stopping:
            return
        raise self.app._crash_reason or RuntimeError("the stream engine stopped")

    async def stop(self) -> None:
        """Leave the group, stop the tasks, close the stores."""
        self._stopping = True
        if not await answers(self.settings.kafka, ANSWER_S):
            log.warning("no broker answers: ended without leaving the group; what is not committed comes again")
            self.app.leave_alone()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.app.stop(), STOP_TIMEOUT_S)
        await self._tasks.stop()
        self.mapping_pool.shutdown(cancel_futures=True)
        self.encoding_pool.shutdown(cancel_futures=True)
        self.portrait_pool.shutdown()
        self.tablets.close()
        self.store.close()
        self.socket.close()
        self._lock.close()


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Worker]:
    """A started worker; stopped at the end whatever happens. Raises SettingsError, BrokerError, StorageError, BundleError before it joins."""
    one_thread()
    await asyncio.to_thread(prepare, settings)
    releases = await read_history(settings.kafka, settings.topic("releases")) if settings.follows() else []
    worker = Worker(settings, releases)
    try:
        with tuned():
            await worker.start()
            yield worker
    finally:
        await worker.stop()


async def run(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT. Raises what made it fail."""
    stop = signalled()
    async with running(settings) as worker:
        log.info("worker at %s", worker.url)
        await until(stop, worker.failed)
        log.info("stopping")
