"""The worker process: builds the worker's parts, starts them in order and stops them in reverse order."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from encoder.base import Encoder
from encoder.baseline import Baseline
from encoder.towers import load_tower
from streams.core.fault_points import point
from streams.core.process import claim, frozen, listen, one_thread, tuned
from streams.core.settings import Settings
from streams.core.tasks import Tasks, signalled, until
from streams.ingest.normalise import Normaliser
from streams.monitoring.metrics import Metrics
from streams.processes.activity import Activity
from streams.processes.backlog import Backlog
from streams.processes.gauges import add_gauges
from streams.processes.restoring import Restorer
from streams.processes.worker_releases import Lifecycle
from streams.processes.worker_source import WorkerSource
from streams.profile.commit import Committer
from streams.profile.encoder_guard import Guard
from streams.profile.encoding_thread import EncodingThread
from streams.profile.late_items import LateItems
from streams.profile.profiler import Profiler, style_of
from streams.profile.recompute import Recomputer
from streams.profile.update import Updater
from streams.releases.release_log import Announced, read_history
from streams.serve.ranking import Ranker
from streams.serve.server import serve
from streams.state.followers import follow_items
from streams.state.item_store import load_items
from streams.state.tablet import Tablet
from streams.state.tablets import Tablets
from streams.transport.agents import Finish, Handle, add_agent
from streams.transport.faust_app import make_app
from streams.transport.faust_batches import RecordBatch
from streams.transport.reading import answers
from streams.transport.sender import Sender
from streams.transport.topics import prepare

log = logging.getLogger("currents.worker")
STOP_TIMEOUT_S = 20.0
ANSWER_S = 2.0  # wait for a broker's answer before leaving the group


class Worker:
    """Owns the parts of a running worker, and the order in which they start and stop. Use it through `running`."""

    def __init__(self, settings: Settings, releases: Sequence[Announced] = ()) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._tasks = Tasks()
        self.failed, self.spawn, self.fail = self._tasks.failed, self._tasks.spawn, self._tasks.fail
        self._stopping = False
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
        self.tablets = Tablets(folder, w.cache_mb, w.write_buffer_mb, self.app.is_member, self._begin_restore)
        self.backlog = Backlog(self.app, self.tablets, settings.topic("events"), w.max_poll_records)
        self.spare = Baseline(self.tower.dims, self.tower.space_id)
        self._add_profile_path()
        self._add_agents()
        add_gauges(self.metrics, self.tablets, self.store, self.backlog, self.guard, self.late, self.app)

    def _add_profile_path(self) -> None:
        """Build the parts between a unified event and its published profile."""
        settings, lifecycle, e = self.settings, self.lifecycle, self.settings.encoding
        sender = Sender(lambda: self.app.producer._ensure_producer())  # noqa: PLW0108 - Faust has none before it starts
        fallback, failures = self.spare if e.fallback == "baseline" else None, self.metrics.encoder_failures
        self.guard = Guard(fallback, e.fallback_after_s, lambda version: failures.labels(version).inc(), self.metrics.fallback.inc)
        profiler = Profiler(lifecycle.lineup, self.store, style_of(settings), e.policy, self.guard, lifecycle.candidate_failed, self.portrait_pool)
        committer = Committer(settings, self.tablets, sender, self.metrics, self._fell_back)
        thread = EncodingThread(self.encoding_pool, self.tablets)
        observer = lifecycle.observer if settings.releases.observed_per_s else None
        self.updater = Updater(settings, self.tablets, profiler, sender, committer, thread, self.metrics, observer)
        recomputer = Recomputer(self.tablets, profiler, committer, thread, self.metrics)
        self.late = LateItems(self.tablets, recomputer, self.metrics, self.backlog.overloaded)
        self.reencoder = lifecycle.join(self.tablets, recomputer, sender, self.backlog.overloaded, self.url)
        self.restorer = Restorer(
            settings, self.store, recomputer, self.reencoder, self.late, self.metrics, self._fallback_to_recompute, self._tasks.spawn
        )
        self.ranker = Ranker(self.store, self.tower, self._encoder_of, self.encoding_pool)
        self.normaliser = Normaliser(settings, self.tower, sender, self.metrics, self.mapping_pool, lifecycle.drift.records)

    def _begin_restore(self, tablet: Tablet) -> None:
        self.restorer.begin(tablet)

    def _fell_back(self, partition: int) -> None:
        self.late.fell_back(partition)

    @property
    def encoder(self) -> Encoder:
        """The serving encoder."""
        return self.lifecycle.lineup().serving

    def _encoder_of(self, space_id: str) -> Encoder | None:
        """Return the encoder that projects items into a space, the fallback's space included; None if there is none."""
        return self.lifecycle.lineup().of_space(space_id) or (self.spare if space_id == self.spare.space_id else None)

    def _fallback_to_recompute(self) -> str | None:
        """Return the fallback's version if a restore must schedule its users for recomputing; None if the re-encoder finds them anyway."""
        found_anyway = self.encoder.version == self.spare.version or self.settings.releases.reencode_per_s
        return None if found_anyway else self.spare.version

    # Agents and the group

    def _add_agents(self) -> None:
        limits = self.settings.worker.max_poll_records, self.settings.worker.linger_ms / 1000
        add_agent(self.app, self.settings.topic("events"), "update", self.updater.batches, *limits)
        events, items = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        for p in self.settings.platforms:
            events[p.topic].append(p.name)
            if p.items_topic:
                items[p.items_topic].append(p.name)
        for topic, names in events.items():
            add_agent(self.app, topic, f"normalise-{'+'.join(names)}", self._of_platforms(names, self.normaliser.events), *limits)
        for topic, names in items.items():
            add_agent(self.app, topic, f"items-{'+'.join(names)}", self._of_platforms(names, self.normaliser.items), *limits)
        self.app.on_partitions_revoked.connect(self._revoked, weak=False)
        self.app.on_partitions_assigned.connect(self._assigned, weak=False)

    def _of_platforms(self, platforms: list[str], work: Callable[[str, list[RecordBatch]], Awaitable[None]]) -> Handle:
        """Return a handler that runs `work` for each platform of a topic on batches of the current generation.

        The handler acks the batches whose generation is still current afterwards.
        """

        def current(batches: list[RecordBatch]) -> list[RecordBatch]:
            return [b for b in batches if b.generation_id == self.app.consumer_generation_id]

        async def finish(batches: list[RecordBatch]) -> list[RecordBatch]:
            await asyncio.gather(*(work(platform, batches) for platform in platforms))
            return current(batches)

        async def handle(batches: list[RecordBatch]) -> Finish:
            return asyncio.create_task(finish(current(batches)))

        return handle

    async def _revoked(self, app: Any, partitions: Any, **_: Any) -> None:
        await self.tablets.freeze()
        point("in-rebalance")

    async def _assigned(self, app: Any, partitions: Any, **_: Any) -> None:
        point("in-rebalance")
        topic = self.settings.topic("events")
        assigned = {tp.partition for tp in partitions if tp.topic == topic}
        log.info("generation %d: tablets %s", self.app.consumer_generation_id, sorted(assigned))
        for tablet in self.tablets.assign(assigned, self.app.consumer_generation_id):
            self.restorer.begin(tablet)

    def ready(self) -> bool:
        """Whether every tablet is restored."""
        return self.tablets.generation is not None and all(t.restored.is_set() for t in self.tablets)

    # Start and stop

    async def start(self) -> None:
        """Start the endpoint, then the item follower, then join the group. Being first, the endpoint answers reads with 503 meanwhile."""
        self.spawn(serve(self._source(), self.socket))
        kafka, topic, n = self.settings.kafka, self.settings.topic("item-vectors"), self.settings.worker.partitions
        self.spawn(follow_items(kafka, topic, n, self.store, self.encoding_pool, self.restorer.items_ready, self.late.arrived, self.metrics.rejected))
        self.spawn(self.late.forever())
        for task in self.lifecycle.tasks():
            self.spawn(task)
        self.spawn(self.tablets.flush_forever())
        self.app.finalize()
        await self.app.start()
        self.spawn(Activity(self.metrics, self.backlog.records).tell())
        self.spawn(self._watch())
        self.spawn(frozen(self.ready))

    def _source(self) -> WorkerSource:
        return WorkerSource(
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

    async def _watch(self) -> None:
        await self.app.wait_until_stopped()
        if self._stopping:
            return
        raise self.app._crash_reason or RuntimeError("the stream engine stopped")

    async def stop(self) -> None:
        """Leave the group, stop the tasks and close the stores."""
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
    """Run a started worker in a context, and stop it at the end, also after errors.

    Raises SettingsError, BrokerError, StorageError or BundleError before the worker joins the group.
    """
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
    """Run a worker until SIGTERM or SIGINT. Raises the error that made the worker fail."""
    stop = signalled()
    async with running(settings) as worker:
        log.info("worker at %s", worker.url)
        await until(stop, worker.failed)
        log.info("stopping")
