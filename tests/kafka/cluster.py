"""Worker processes, load, and the check of everything against the offline fold."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import orjson
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.deadletters import decode_dead_letter
from schemas.profiles import decode_profile, unpack_vector
from streams import verify
from streams.items import ItemStore
from streams.profiler import Profiler, style_of
from streams.settings import Settings
from streams.tablets import Tablet
from streams.topics import admin, create
from tests.apache import free_port

PARTITIONS = 4
WAIT_S = 90.0
PLAIN = """
[[platforms]]
name = "shop"
code = 1
preset = "plain"
shared_ids = true
topic = "{prefix}.in.shop"
items_topic = "{prefix}.in.items"
"""


def wait_for(what: str, condition: Callable[[], Any], seconds: float = WAIT_S) -> Any:
    """What the condition returns once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


class WorkerProcess:
    """`currents worker` as a process with a data folder and a port of its own."""

    def __init__(self, cluster: "Cluster", name: str, data_dir: Path | None = None, **environment: str) -> None:
        self.name, self.port = name, free_port()
        self.data_dir = data_dir or cluster.folder / f"data-{name}"
        self.log = cluster.folder / f"{name}-{self.port}.log"
        self._environment = {
            **os.environ,
            "CURRENTS_WORKER__DATA_DIR": str(self.data_dir),
            "CURRENTS_QUERY__PORT": str(self.port),
            **environment,
        }
        self._config = cluster.config
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "streams.cli", "worker", "--config", str(self._config)]
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def says(self) -> str:
        return self.log.read_text(errors="replace")

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"worker {self.name} ended with {self.process.returncode}:\n{self.says()[-3000:]}")
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def ready(self) -> "WorkerProcess":
        wait_for(f"worker {self.name} to be ready", self.is_ready)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(40)

    def exit(self) -> int:
        """Exit status of a worker that ends by itself."""
        return self.process.wait(WAIT_S)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=5).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name) and not line.startswith("#"))


class Load(threading.Thread):
    """Plain events at a rate from a thread: skewed users, 3 % late, 2 % exact duplicates, 1 % broken; seeded."""

    def __init__(self, cluster: "Cluster", events: int, rate: float, users: int = 2000, seed: int = 7) -> None:
        super().__init__(daemon=True)
        self._cluster, self._events, self._rate, self._users, self._random = cluster, events, rate, users, random.Random(seed)
        self.broken = 0
        self.start()

    def run(self) -> None:
        asyncio.run(self._send())

    async def _send(self) -> None:
        topic, r = f"{self._cluster.prefix}.in.shop", self._random
        producer = AIOKafkaProducer(bootstrap_servers=self._cluster.bootstrap, linger_ms=10, max_batch_size=256 << 10)
        await producer.start()
        began, last = time.monotonic(), b""
        try:
            for n in range(self._events):
                lot = r.random()
                if lot < 0.01:
                    value, self.broken = b'{"account": 1, "item"', self.broken + 1
                elif lot < 0.03 and last:
                    value = last
                else:
                    now = time.time_ns() // 1_000_000
                    last = value = plain(r, n, now - 3_600_000 if lot < 0.06 else now, self._users)
                await producer.send(topic, value)
                if n % 50 == 0:
                    await asyncio.sleep(max(0.0, n / self._rate - (time.monotonic() - began)))
            await producer.flush()
        finally:
            await producer.stop()


def plain(r: random.Random, n: int, at_ms: int, users: int) -> bytes:
    behavior = r.choice(("view", "view", "click", "cart", "buy", "hide"))
    user, item = int(users * r.random() ** 2), r.randrange(600)
    return orjson.dumps({"account": f"u{user}", "item": f"i{item}", "behavior": behavior, "time": at_ms, "id": f"e{n}", "value": r.random()})


class Cluster:
    """Settings and topics of one test, its workers, and what they should have made."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path, settings: dict[str, object], toml: str = PLAIN) -> None:
        self.bootstrap, self.prefix, self.folder = bootstrap, prefix, folder
        values = tomllib.loads(str(settings.pop("toml", toml)).format(prefix=prefix))
        worker = {"prefix": prefix, "partitions": PARTITIONS, "data_dir": str(folder / "data")}
        values["worker"] = worker | dict(settings.pop("worker", {}))  # type: ignore[call-overload]
        values |= {"kafka": {"bootstrap": bootstrap}, **settings}
        self.settings = Settings(**values)
        self.config = folder / f"{prefix}.json.toml"
        self.config.write_text(to_toml(values))
        client = admin(self.settings.kafka)
        create(client, self.settings, platforms=True)
        client.close()
        self.workers: list[WorkerProcess] = []

    def worker(self, name: str, **more: Any) -> WorkerProcess:
        self.workers.append(WorkerProcess(self, name, **more))
        return self.workers[-1]

    def stop(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.kill()

    def send(self, topic: str, values: Iterable[bytes | None | tuple[bytes | None, bytes | None]]) -> int:
        """Records (values, or keys and values) to a topic, round robin; returns how many."""
        return asyncio.run(self._send(topic, values))

    async def _send(self, topic: str, values: Iterable[Any]) -> int:
        producer, n = AIOKafkaProducer(bootstrap_servers=self.bootstrap, max_batch_size=512 << 10, max_request_size=8 << 20), 0
        await producer.start()
        try:
            batches, futures = [producer.create_batch() for _ in range(PARTITIONS)], []
            for row in values:
                key, value = row if isinstance(row, tuple) else (None, row)
                p, n, at = n % PARTITIONS, n + 1, time.time_ns() // 1_000_000
                if batches[p].append(key=key, value=value, timestamp=at) is None:
                    futures.append(await producer.send_batch(batches[p], topic, partition=p))
                    batches[p] = producer.create_batch()
                    batches[p].append(key=key, value=value, timestamp=at)
            futures += [await producer.send_batch(b, topic, partition=p) for p, b in enumerate(batches)]
            for future in futures:
                await future
        finally:
            await producer.stop()
        return n

    def items(self, n: int = 500) -> None:
        """Items i0..i(n-1) of the plain platform; events also name some that never come."""
        rows = ({"id": f"i{k}", "title": f"Thing number {k} for area {k % 23}", "categories": [f"Area {k % 23}", f"Kind {k % 5}"]} for k in range(n))
        self.send(f"{self.prefix}.in.items", map(orjson.dumps, rows))

    # What there is

    def log(self, name: str) -> list[Any]:
        return asyncio.run(verify.read_topic(self.settings.kafka, self.settings.topic(name), PARTITIONS))

    def lag(self) -> int:
        """Records on source topics and on the unified one that are not committed."""
        names = [t for p in self.settings.platforms for t in (p.topic, p.items_topic) if t] + [self.settings.topic("events")]
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        client = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            tps = [TopicPartition(t, p) for t in names for p in range(PARTITIONS)]
            ends = consumer.end_offsets(tps)
            done = next(iter(client.list_group_offsets({self.prefix: tps}).values()))
            return sum(end - max(done[tp].offset if tp in done else 0, 0) for tp, end in ends.items())
        finally:
            consumer.close()
            client.close()

    def drain(self) -> None:
        """Wait until everything is committed."""
        wait_for("all offsets to be committed", lambda: self.lag() == 0)

    def check(self, *data_dirs: Path) -> dict[str, int]:
        """Everything wrong, by kind; all zero is right. Workers must have stopped, so that their stores can be read."""
        names = {p.code: p.name for p in self.settings.platforms}
        expected, _ = verify.offline_windows(self.log("events"), names, self.settings.encoding.window)
        windows, profiles = verify.latest(self.log("windows")), verify.latest(self.log("profiles"))
        tables = {"windows": dict[bytes, bytes](), "profiles": dict[bytes, bytes]()}
        for folder in data_dirs:
            for path in sorted(folder.glob("tablet-*")):
                tablet = Tablet(int(path.name.removeprefix("tablet-")), path)
                for name, rows in tables.items():
                    rows.update(tablet.scan(name))
                tablet.close()
        return {
            "windows_wrong": verify.wrong(expected, windows),
            "profiles_wrong": self._profiles_wrong(expected, profiles),
            "window_tables_wrong": verify.wrong(windows, tables["windows"]) if data_dirs else 0,
            "profile_tables_wrong": verify.wrong(profiles, tables["profiles"]) if data_dirs else 0,
            "not_committed": self.lag(),
        }

    def _profiles_wrong(self, windows: dict[bytes, bytes], profiles: dict[bytes, bytes]) -> int:
        """Profiles that are not what the encoder and the portrait make of their window, given all items."""
        tower = load_tower(self.settings.encoding.tower)
        encoder = load_encoder(self.settings.encoding.encoder, tower.space_id, tower.dims)
        store = ItemStore(self.folder / f"items-{time.time_ns()}", tower.space_id, tower.dims)
        store.apply(verify.latest(self.log("item-vectors")).items(), ("all", 0), 0)
        users = sorted(windows)
        made, _ = Profiler(encoder, store, style_of(self.settings), self.settings.encoding.window)(
            users, [windows[u] for u in users], [0] * len(users), 0
        )
        store.close()
        wrong = [(row, profiles.get(u)) for u, row in zip(users, made, strict=True) if u not in profiles or not same(row, profiles[u])]
        for row, found in wrong[:2]:
            print("want", msgpack.unpackb(row), "\n got", found and msgpack.unpackb(found))
        return len(wrong) + len(profiles.keys() - windows.keys())

    def dead(self) -> list[Any]:
        return [decode_dead_letter(r.value) for r in self.log("dead-letters")]


def same(one: bytes, other: bytes) -> bool:
    """Equal but for the clock and the last bit of float16."""
    a, b = decode_profile(one), decode_profile(other)
    if not np.allclose(unpack_vector(a.vector), unpack_vector(b.vector), atol=1e-3):
        return False
    x, y = msgpack.unpackb(one), msgpack.unpackb(other)
    for row in (x, y):
        for field in ("vector", "updated_at", "received_at"):
            del row[field]
    return rounded(x) == rounded(y)


def rounded(value: Any) -> Any:
    """Floats to 5 digits: the order of a sum is not part of the contract."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


RIGHT = {"windows_wrong": 0, "profiles_wrong": 0, "window_tables_wrong": 0, "profile_tables_wrong": 0, "not_committed": 0}


def to_toml(values: dict[str, Any]) -> str:
    """Settings as TOML: JSON's scalars, lists and inline tables are TOML's but for `:` and null."""

    def show(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{orjson.dumps(k).decode()} = {show(v)}" for k, v in value.items()) + " }"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(show, value)) + "]"
        return orjson.dumps(value).decode()

    return "\n".join(f"{key} = {show(value)}" for key, value in values.items()) + "\n"
