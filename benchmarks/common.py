"""Shared by the benchmarks: a broker, synthetic events, a worker in this process, and the recording of results."""

import asyncio
import contextlib
import datetime
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import tomli_w
from aiokafka import AIOKafkaProducer

from streams.core.settings import Settings
from streams.processes.worker import Worker, running
from streams.transport.sender import partition_of
from streams.transport.topics import asking, create
from testkit.apache import PROPERTIES, ApacheKafka

RESULTS = Path(os.environ.get("BENCH_RESULTS") or Path(__file__).parent / "results")
"""Folder of the results. Set BENCH_RESULTS to another folder for trials at a small size."""
PARTITIONS = 4
ITEMS = 4000
BEHAVIORS = ("view", "view", "view", "click", "cart", "buy")


def record(question: str, figures: dict[str, Any], unit: str, note: str, bare: bool = False, **details: Any) -> None:
    """Write a result to its file and print it as the last line, with `bare` without the question's name. Only the file has the details."""
    RESULTS.mkdir(exist_ok=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    row = {
        "question": question,
        "figures": figures,
        "unit": unit,
        "note": note,
        "command": command(question),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores ({processor()}), {memory} GiB, broker and load beside the worker",
        **details,
    }
    (RESULTS / f"{question}.json").write_bytes(orjson.dumps(row, option=orjson.OPT_INDENT_2) + b"\n")
    print(orjson.dumps(figures if bare else {question: figures}).decode(), flush=True)


def command(question: str) -> str:
    """Return the command that reproduces the figures."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else ""
    return shlex.join(("python", "-m", name, *sys.argv[1:])) if name.startswith("benchmarks.") and sys.argv[1:] else f"make bench ONLY={question}"


def processor() -> str:
    """Return the CPU's name and its widest vector instructions, which determine the encoder's cost."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    name = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "unknown")
    wide = next((said for flag, said in (("avx512_vnni", "AVX-512 VNNI"), ("avx512f", "AVX-512"), ("avx2", "AVX2")) if f" {flag}" in info), "")
    return ", ".join(filter(None, (name, wide)))


def median(values: Iterable[float]) -> float:
    """Return the median, rounded to an integer."""
    return round(statistics.median(list(values)))


@contextlib.contextmanager
def kafka(compacts: bool = False) -> Iterator[str]:
    """Run an Apache Kafka broker with 1 GiB of heap. `compacts`: compact the changelogs, which costs CPU but saves the disk in a long run."""
    compacting = PROPERTIES + "log.cleaner.enable=true\nlog.segment.bytes=134217728\n"  # the last value of a repeated setting counts
    with ApacheKafka(heap_mb=1024, properties=compacting if compacts else PROPERTIES) as broker:
        yield broker.bootstrap


@contextlib.asynccontextmanager
async def bench(bootstrap: str, **sections: dict[str, Any]) -> AsyncIterator[Settings]:
    """Create topics, send the items, and yield the settings."""
    prefix = f"bench{time.time_ns() // 1_000_000}"
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        values: dict[str, Any] = {
            "kafka": {"bootstrap": bootstrap},
            "worker": {"prefix": prefix, "partitions": PARTITIONS, "data_dir": folder, **sections.pop("worker", {})},
            "query": {"port": 0},
            "platforms": [platform(prefix)],
            **sections,
        }
        settings = Settings(**values)
        with asking(settings.kafka) as client:
            create(client, settings, platforms=True)
        await send(settings, f"{prefix}.items", ((f"i{n}".encode(), item(n)) for n in range(ITEMS)))
        yield settings


def platform(prefix: str) -> dict[str, Any]:
    """Return the declaration of the benchmarks' platform, with topics under a prefix."""
    return {"name": "shop", "code": 1, "preset": "plain", "shared_ids": True, "topic": f"{prefix}.in", "items_topic": f"{prefix}.items"}


def declared(settings: Settings, folder: Path) -> Path:
    """Write settings of `bench` to a file for worker processes, and return the file."""
    w, path = settings.worker, folder / f"{settings.worker.prefix}.toml"
    values = {
        "kafka": {"bootstrap": settings.kafka.bootstrap},
        "worker": {"prefix": w.prefix, "partitions": w.partitions},
        "encoding": {"encoder": settings.encoding.encoder, "device": "cpu"},
        "platforms": [platform(w.prefix)],
    }
    path.write_text(tomli_w.dumps(values))
    return path


def item(n: int) -> bytes:
    """Return item n's JSON, with a title and two of 30 categories."""
    words = random.Random(n)
    title = f"{words.choice(('Classic', 'Light', 'Durable', 'Compact'))} {words.choice(('lamp', 'tent', 'grinder', 'guitar', 'lens'))} number {n}"
    return orjson.dumps({"id": f"i{n}", "title": title, "categories": [f"Department {n % 6}", f"Topic {n % 24}"]})


def events(n: int, users: int, seed: int = 1, at_ms: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Yield (user, JSON of the preset `plain`) of n events. Few users have many events; times increase."""
    r, start = random.Random(seed), (at_ms or time.time_ns() // 1_000_000) - n
    for k in range(n):
        user = f"u{int(users * r.random() ** 2)}"
        row = {"account": user, "item": f"i{r.randrange(ITEMS)}", "behavior": r.choice(BEHAVIORS), "time": start + k, "id": f"{seed}-{k}"}
        yield user.encode(), orjson.dumps(row)


async def send(settings: Settings, topic: str, rows: Iterable[tuple[bytes, bytes]]) -> int:
    """Send rows to the partitions of their keys in large batches. Returns the number of rows."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap, max_batch_size=512 << 10)
    await producer.start()
    try:
        parts = settings.worker.partitions
        batches, sent, n = [producer.create_batch() for _ in range(parts)], [], 0
        for key, value in rows:
            p, n, now = partition_of(key, parts), n + 1, time.time_ns() // 1_000_000
            if batches[p].append(key=key, value=value, timestamp=now) is None:
                sent.append(await producer.send_batch(batches[p], topic, partition=p))
                batches[p] = producer.create_batch()
                batches[p].append(key=key, value=value, timestamp=now)
        sent += [await producer.send_batch(b, topic, partition=p) for p, b in enumerate(batches) if b.record_count()]
        await asyncio.gather(*sent)
        return n
    finally:
        await producer.stop()


@contextlib.asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[Worker]:
    """Run a worker in this process and yield it once it knows every item."""
    async with running(settings) as worker:
        while worker.store.table.size <= ITEMS and not worker.failed.done():
            await asyncio.sleep(0.02)
        yield worker


async def folded(worker: Worker, least: float) -> None:
    """Wait until a worker has folded `least` events. Raises the worker's failure."""
    while worker.metrics.value("currents_folded_total") < least:
        if worker.failed.done():
            await worker.failed
        await asyncio.sleep(0.005)


async def rate(worker: Worker, total: int) -> float:
    """Return the events a second from the end of the first batch to the last event."""
    await folded(worker, 1)
    began, before = time.perf_counter(), worker.metrics.value("currents_folded_total")
    await folded(worker, total)
    return (total - before) / (time.perf_counter() - began)


def cpu(process: psutil.Process | None) -> float:
    """Return a process's CPU time in seconds; 0 if the process is None."""
    return float(sum(process.cpu_times()[:2])) if process else 0.0


def load(settings: Settings, per_second: float, seconds: float, users: int) -> "asyncio.Future[asyncio.subprocess.Process]":
    """Start a process that sends events at a rate."""
    arguments = (settings.kafka.bootstrap, settings.platforms[0].topic, str(per_second), str(seconds), str(users))
    return asyncio.ensure_future(asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.load", *arguments))
