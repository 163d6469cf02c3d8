"""`currents serve`: a read replica. It follows the profile changelog into a RocksDB of its own and answers reads; many can stand side by side.

One that keeps items ranks too, and follows the topic of releases for that: with the encoders whose profiles it has.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from aiokafka.errors import KafkaError

from encoder.base import Encoder
from encoder.baseline import Baseline
from encoder.features import ItemTable
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.releases import Release
from streams.core.clock import now_ms
from streams.core.errors import BrokerError, StorageError
from streams.core.process import claim, frozen, listen, one_thread, tuned
from streams.core.settings import Settings
from streams.core.tasks import Tasks, signalled, until
from streams.monitoring.metrics import ReplicaMetrics
from streams.releases.bundle_fetch import limits_of, load_release
from streams.releases.hot_swap import Swapper
from streams.releases.release_log import Announced, read_history, serving, trial
from streams.releases.routing import Lineup
from streams.serve.ranking import Ranker
from streams.serve.responses import Problem, not_yet
from streams.serve.server import serve
from streams.state.followers import Behind, Follower, follow_items, header
from streams.state.item_store import ItemStore, load_items
from streams.state.tablets import Tablets
from streams.transport.sender import partition_of
from streams.transport.topics import asking, identity

log = logging.getLogger("currents.replica")


class Replica:
    """A running replica, and its `streams.serve.api.Source`. Use it through `running`. `releases`: the topic as it is, if it is followed."""

    def __init__(self, settings: Settings, changelog: Mapping[str, Any], releases: Sequence[Announced] = ()) -> None:
        self.settings, self.metrics = settings, ReplicaMetrics()
        s = settings.serve
        folder = Path(s.data_dir)
        self._lock = claim(folder, "serve.data_dir", "process")
        keep(folder, changelog)
        self.tablets = Tablets(folder, s.cache_mb, s.write_buffer_mb)
        self.tablets.assign(set(range(changelog["partitions"])), 0)
        self._partitions: int = changelog["partitions"]
        self._pool = ThreadPoolExecutor(1, "apply")
        self._ranker = self._items = None
        self._swapper: Swapper | None = None
        if s.items:
            self._items, self._ranker = self._with_items(folder, releases)
        self.socket = listen(s.host, s.port, "serve.port")
        self.url = "http://{}:{}".format(*self.socket.getsockname()[:2])
        self._follower = Follower(settings.kafka, changelog["topic"], self.tablets, self._pool, self.metrics.rows.inc, self.metrics.rejected)
        self._tasks = Tasks()
        self.failed = self._tasks.failed
        self._add_gauges()

    def _with_items(self, folder: Path, releases: Sequence[Announced]) -> tuple[ItemStore, Ranker]:
        e, cache, retry_s = self.settings.encoding, folder / "bundles", self.settings.releases.retry_s
        tower = load_tower(e.tower)

        limits = limits_of(self.settings, folder)

        def load(release: Release, beside: Encoder | None = None) -> Encoder:
            return load_release(release, cache, tower.space_id, tower.dims, e.threads, "cpu", beside, limits)

        encoder = load_encoder(e.encoder, tower.space_id, tower.dims, e.threads, "cpu")
        store = load_items(folder / "items", tower.space_id, tower.dims)
        self._items_pool, self._items_ready = ThreadPoolExecutor(1, "items"), asyncio.Event()
        nothing = ItemTable(tower.dims)  # a request's items are projected as they come: none are kept in the encoders' spaces
        self._spare = Baseline(tower.dims, tower.space_id)
        self._swapper = Swapper(Lineup(encoder), releases, load, nothing, self._items_pool, self.metrics, cache, retry_s)
        return store, Ranker(store, tower, self._encoder_of, self._items_pool)

    def _encoder_of(self, space_id: str) -> Encoder | None:
        """Who projects items for profiles of a space. Raises Problem where that is a release which is not here yet."""
        assert self._swapper is not None
        found = self._swapper.lineup.of_space(space_id)
        if found is None and space_id == self._spare.space_id:
            return self._spare
        history = self._swapper.history
        awaited = [r for r in (serving(history), trial(history)) if found is None and r is not None and r.space_id == space_id]
        if awaited:
            raise not_yet(
                f"release {awaited[0].version} is not here{': ' + why if (why := self._swapper.refused.get(awaited[0].version)) else ' yet'}"
            )
        return found

    def _add_gauges(self) -> None:
        m = self.metrics
        m.gauge("currents_behind_records", "Rows of the profile changelog that are not here yet", lambda: _number(self._behind().records))
        m.gauge("currents_behind_seconds", "Everything published longer ago than this is here", lambda: _number(self._behind().seconds))
        m.gauge("currents_users", "Users with a profile here (RocksDB's estimate)", lambda: self.tablets.total("users"))
        m.gauge("currents_rocksdb_disk_bytes", "RocksDB on disk", lambda: self.tablets.total("disk"))
        m.gauge("currents_rocksdb_memory_bytes", "RocksDB memtables", lambda: self.tablets.total("memory"))

    # Source

    def elsewhere(self, user: bytes) -> None:
        """A replica has every user."""

    def stored(self, user: bytes) -> bytes | None:
        """A profile, unless its partition is too far behind."""
        partition = partition_of(user, self._partitions)
        behind = self._follower.behind([partition], now_ms())
        if not self._within(behind):
            raise not_yet("this replica is too far behind the profile changelog", header(behind))
        tablet = self.tablets.get(partition)
        return tablet.profile(user) if tablet else None

    def freshness(self, users: Sequence[bytes]) -> Mapping[str, str]:
        """How far behind the partitions of these users are."""
        return header(self._follower.behind({partition_of(u, self._partitions) for u in users}, now_ms()))

    def ranker(self) -> Ranker:
        """If items are kept here and all of them have been read."""
        if self._ranker is None:
            raise Problem(501, "this replica keeps no items (serve.items): ask a worker to rank")
        if not self._items_ready.is_set():
            raise not_yet("items are being read")
        return self._ranker

    def health(self) -> dict[str, Any]:
        """Whether the replica goes on, and how far behind it is."""
        behind = self._behind()
        status = "failed" if self.failed.done() else "ok" if self._within(behind) else "behind"
        said: dict[str, Any] = {"status": status, "behind": {"records": behind.records, "seconds": behind.seconds}}
        if self._swapper is None:
            return said
        return {**said, "encoders": self._swapper.lineup.health(), "refused": self._swapper.refused}

    def ready(self) -> dict[str, Any]:
        """How far behind, while no partition is too far."""
        for tablet in self.tablets:
            if not self._within(self._follower.behind([tablet.partition], now_ms())):
                raise not_yet("this replica is too far behind the profile changelog", header(self._behind()))
        if self._ranker is not None and not self._items_ready.is_set():
            raise not_yet("items are being read")
        return {**self.health(), "status": "ready"}

    def fail(self, error: Exception) -> None:
        """The replica ends."""
        self._tasks.fail(error)

    def _behind(self) -> Behind:
        return self._follower.behind(range(self._partitions), now_ms())

    def _within(self, behind: Behind) -> bool:
        return behind.within(self.settings.serve.max_behind_records, self.settings.serve.max_behind_s)

    # Lifecycle

    def start(self) -> None:
        """Endpoint first, so that reads are answered with 503 from the start."""
        self._tasks.spawn(serve(self, self.socket))
        self._tasks.spawn(self._follow())
        self._tasks.spawn(frozen(lambda: self._within(self._behind())))

    async def _follow(self) -> None:
        s = self.settings
        followed = [self._follower.follow()]
        if self._items is not None:
            topic, n = s.topic("item-vectors"), s.worker.partitions
            followed.append(follow_items(s.kafka, topic, n, self._items, self._items_pool, self._items_ready, lambda _: None, self.metrics.rejected))
        if self._swapper is not None and s.follows():
            followed.append(self._swapper.follow(s.kafka, s.topic("releases")))
        try:
            await asyncio.gather(*followed)
        except KafkaError as error:
            raise BrokerError(f"kafka.bootstrap = {s.kafka.bootstrap!r}: {error}") from None

    async def stop(self) -> None:
        """Answer what is under way, stop following, close the stores."""
        await self._tasks.stop()
        self._pool.shutdown()
        if self._items is not None:
            self._items_pool.shutdown(cancel_futures=True)
            self._items.close()
        self.tablets.close()
        self.socket.close()
        self._lock.close()


def keep(folder: Path, changelog: Mapping[str, Any]) -> None:
    """Empty a data folder that was filled from another changelog: another topic, or one that was made anew. Raises StorageError if a worker's."""
    note, filled = folder / "changelog.json", [*folder.glob("tablet-*"), *folder.glob("items")]
    if filled and not note.exists():
        raise StorageError(f"serve.data_dir = {str(folder)!r}: holds a worker's tablets; give the replica a folder of its own")
    wanted = orjson.dumps(changelog)
    if not note.exists() or note.read_bytes() != wanted:
        for path in filled:
            log.info("%s: filled from another changelog, emptied", path)
            shutil.rmtree(path)
        note.write_bytes(wanted)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Replica]:
    """A started replica; stopped at the end whatever happens. Raises SettingsError, BrokerError, StorageError before it listens."""
    one_thread()
    changelog = await asyncio.to_thread(_look, settings)
    follows = settings.serve.items and settings.follows()
    replica = Replica(settings, changelog, await read_history(settings.kafka, settings.topic("releases")) if follows else ())
    try:
        with tuned():
            replica.start()
            yield replica
    finally:
        await replica.stop()


def _look(settings: Settings) -> dict[str, Any]:
    with asking(settings.kafka) as client:
        return identity(client, settings.topic("profiles"))


async def run(settings: Settings) -> None:
    """Run a replica until SIGTERM or SIGINT. Raises what made it fail."""
    stop = signalled()
    async with running(settings) as replica:
        log.info("read replica at %s", replica.url)
        await until(stop, replica.failed)
        log.info("stopping")
