"""A test's cluster: settings, topics, workers, load, and the check of the result."""

import asyncio
import time
import tomllib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import tomli_w
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from schemas.deadletters import decode_dead_letter
from streams.core.settings import Settings
from streams.transport.topics import asking, create
from testkit.checking import RIGHT, compare, read
from testkit.load import Load as _Load
from testkit.processes import WAIT_S, ReplicaProcess, WorkerProcess, wait_for

__all__ = ["QUOTAS", "RIGHT", "WAIT_S", "Cluster", "Load", "WorkerProcess", "wait_for"]

PARTITIONS = 4
QUOTAS = {"window": 8, "window_per_platform": 10, "window_strong": 6}  # small enough that many users' windows are full
PLAIN = """
[[platforms]]
name = "shop"
code = 1
preset = "plain"
shared_ids = true
topic = "{prefix}.in.shop"
items_topic = "{prefix}.in.items"
"""


class Cluster:
    """Owns the settings, topics, workers and replicas of one test, and checks their result."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path, settings: dict[str, object], toml: str = PLAIN) -> None:
        self.bootstrap, self.prefix, self.folder = bootstrap, prefix, folder
        values = tomllib.loads(str(settings.pop("toml", toml)).format(prefix=prefix))
        worker = {"prefix": prefix, "partitions": PARTITIONS, "data_dir": str(folder / "data")}
        values["worker"] = worker | dict(settings.pop("worker", {}))  # type: ignore[call-overload]
        values |= {"kafka": {"bootstrap": bootstrap}, **settings}
        values["releases"] = {"allowed_urls": [str(folder.parent)], **dict(values.get("releases", {}))}
        self.settings = Settings(**values)
        self.config = folder / f"{prefix}.json.toml"
        self.config.write_text(tomli_w.dumps(values))
        with asking(self.settings.kafka) as client:
            create(client, self.settings, platforms=True)
        self.partitions = self.settings.worker.partitions
        self.workers: list[WorkerProcess] = []
        self.replicas: list[ReplicaProcess] = []
        self.loads: list[Load] = []

    def worker(self, name: str, data_dir: Path | None = None, **environment: str) -> WorkerProcess:
        """Start a worker. A worker with the same name gets the same data folder."""
        self.workers.append(WorkerProcess(self.folder, self.config, name, data_dir, **environment))
        return self.workers[-1]

    def replica(self, name: str, **environment: str) -> ReplicaProcess:
        """Start a read replica. A replica with the same name gets the same data folder."""
        self.replicas.append(ReplicaProcess(self.folder, self.config, name, None, **environment))
        return self.replicas[-1]

    def stop(self) -> None:
        started: list[Load | WorkerProcess | ReplicaProcess] = [*self.loads, *self.workers, *self.replicas]
        for one in started:
            one.stop()

    # Input

    def send(self, topic: str, values: Iterable[bytes | tuple[bytes | None, bytes | None] | None], at_ms: int | None = None) -> int:
        """Send records (values, or pairs of key and value) to a topic, round robin. Returns the number of records."""
        return asyncio.run(self._send(topic, values, at_ms))

    async def _send(self, topic: str, values: Iterable[Any], at_ms: int | None) -> int:
        producer, n = AIOKafkaProducer(bootstrap_servers=self.bootstrap, max_batch_size=512 << 10, max_request_size=8 << 20), 0
        await producer.start()
        try:
            batches, futures = [producer.create_batch() for _ in range(self.partitions)], []
            for row in values:
                key, value = row if isinstance(row, tuple) else (None, row)
                p, n, at = n % self.partitions, n + 1, at_ms or time.time_ns() // 1_000_000
                if batches[p].append(key=key, value=value, timestamp=at) is None:
                    futures.append(await producer.send_batch(batches[p], topic, partition=p))
                    batches[p] = producer.create_batch()
                    batches[p].append(key=key, value=value, timestamp=at)
            futures += [await producer.send_batch(b, topic, partition=p) for p, b in enumerate(batches) if b.record_count()]
            for future in futures:
                await future
        finally:
            await producer.stop()
        return n

    def configure(self, topic: str, config: dict[str, str]) -> None:
        """Set a topic's configuration on the broker."""
        with asking(self.settings.kafka) as client:
            client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=config)])

    def items(self, n: int = 500) -> None:
        """Send items i0..i(n-1) of the plain platform. Events also name items that are never sent."""
        rows = ({"id": f"i{k}", "title": f"Thing number {k} for area {k % 23}", "categories": [f"Area {k % 23}", f"Kind {k % 5}"]} for k in range(n))
        self.send(f"{self.prefix}.in.items", map(orjson.dumps, rows))

    # Output

    def log(self, name: str) -> list[Any]:
        return read(self.settings, name)

    def dead(self) -> list[Any]:
        return [decode_dead_letter(r.value) for r in self.log("dead-letters")]

    def lag(self) -> int:
        """Return the number of uncommitted records on the source topics and the unified topic."""
        names = [t for p in self.settings.platforms for t in (p.topic, p.items_topic) if t] + [self.settings.topic("events")]
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        client = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            tps = [TopicPartition(t, p) for t in names for p in range(self.partitions)]
            done = next(iter(client.list_group_offsets({self.prefix: tps}).values()))
            ends = consumer.end_offsets(tps)  # read after the commits, so that the ends include the output of committed records
            return sum(end - max(done[tp].offset if tp in done else 0, 0) for tp, end in ends.items())
        finally:
            consumer.close()
            client.close()

    def drain(self) -> None:
        """Wait until everything is committed and users of late items are recomputed. The timeout restarts whenever the lag shrinks."""
        left = self.lag()
        while left:
            before = left
            (left,) = wait_for(f"any of {before} records to be committed", partial(self._fewer, before), WAIT_S)
        for worker in self.workers:
            if worker.process.poll() is None:
                wait_for("late items", partial(_none_late, worker), WAIT_S)

    def _fewer(self, before: int) -> tuple[int] | None:
        now = self.lag()
        return (now,) if now < before else None

    def owners(self) -> dict[WorkerProcess, set[int]]:
        """Wait until every tablet has exactly one owner among the running workers. Returns worker -> tablets."""

        def settled() -> dict[WorkerProcess, set[int]] | None:
            owned = {w: w.owned() for w in self.workers if w.process.poll() is None}
            return owned if sorted(p for ps in owned.values() for p in ps) == list(range(self.partitions)) else None

        found: dict[WorkerProcess, set[int]] = wait_for("every tablet to have one owner", settled)
        return found

    def check(self, *data_dirs: Path, owned: dict[Path, set[int]] | None = None) -> dict[str, int]:
        """Return the number of errors by kind; a right cluster gives RIGHT. All workers must have stopped.

        Checks all tablets of `data_dirs`. `owned`: data folder -> tablets, of workers that left.
        """
        tables = {d: {int(path.name.removeprefix("tablet-")) for path in d.glob("tablet-*")} for d in data_dirs} | (owned or {})
        return {**compare(self.settings, tables, self.folder, owned or ()), "not_committed": self.lag()}


class Load(_Load):
    """Load on the plain platform of a cluster."""

    def __init__(self, cluster: Cluster, events: int, rate: float, users: int = 2000, seed: int = 7) -> None:
        super().__init__(cluster.bootstrap, f"{cluster.prefix}.in.shop", events, rate, users, seed)
        cluster.loads.append(self)


def _none_late(worker: WorkerProcess) -> bool:
    return not worker.metric("currents_late_items")
