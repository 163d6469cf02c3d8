"""Soak test: memory, file handles, disk, lag and ages of a worker during an hour at half its maximum rate, which must stay constant. Plotted.

python -m benchmarks.soak --minutes 60 --rate 2000
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import httpx
import matplotlib as mpl
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families as families

from benchmarks.common import RESULTS, bench, declared, load, record
from testkit.apache import PROPERTIES, ApacheKafka
from testkit.processes import WorkerProcess

mpl.use("svg")
from matplotlib import pyplot as plt

MINUTES, RATE, USERS, EVERY_S, WARM_MIN = 60.0, 2000.0, 20_000, 5.0, 10.0
CLEANED = PROPERTIES.replace("log.cleaner.enable=false", "log.cleaner.enable=true\nlog.segment.bytes=134217728\nlog.roll.ms=120000")
"""Compact the changelogs, as outside the benchmarks; otherwise an hour's changelogs would fill the disk."""


@dataclass
class Look:
    """One sample of the worker's state."""

    minute: float
    mib: float
    """Resident memory."""
    handles: int
    """Open files and sockets."""
    disk_mib: float
    """Size of the data folder."""
    lag: float
    """Records of the unified topic that are not handled yet."""
    p99_ms: float
    """Upper bound of the ages of 99 % of the events since the previous sample: a bucket's edge."""
    events: float
    """Events folded so far."""


class Ages:
    """Owns the histogram counts of the previous sample, and computes ages between two samples from the Prometheus histogram."""

    def __init__(self) -> None:
        self._before: dict[float, float] = {}

    def p99_ms(self, counts: dict[float, float]) -> float:
        """Cumulative counts by upper edge in s -> the edge in ms below which 99 % of the events since the last call lie; 0 without events."""
        edges = sorted(counts)
        since = np.array([counts[e] - self._before.get(e, 0.0) for e in edges])
        self._before = counts
        return 1000 * edges[int(np.searchsorted(since, 0.99 * since[-1]))] if len(since) and since[-1] else 0.0


def edges(metrics: str) -> dict[float, float]:
    """A worker's metrics -> cumulative counts of event ages by upper edge in s."""
    samples = (s for f in families(metrics) for s in f.samples)
    return {float(s.labels["le"]): s.value for s in samples if s.name == "currents_event_age_seconds_bucket"}


def look(worker: WorkerProcess, process: psutil.Process, ages: Ages, began: float) -> Look:
    """Return a sample of the worker's present state."""
    values, metrics = dict[str, float](), worker.get("/metrics").text
    for family in families(metrics):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    memory, handles = process.memory_info().rss / 2**20, process.num_fds()
    disk = sum(sizes(worker.data_dir)) / 2**20
    lag = values["currents_lag_records"]
    return Look((time.monotonic() - began) / 60, memory, handles, disk, lag, ages.p99_ms(edges(metrics)), values["currents_folded_total"])


def sizes(folder: Path) -> Iterator[int]:
    """Yield the bytes of each file of a folder. Skips files that RocksDB removes meanwhile."""
    for at, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield (Path(at) / name).stat().st_size


async def watch(bootstrap: str, folder: Path, minutes: float, rate: float) -> list[Look]:
    """Run a worker process under even load and return its samples."""
    looks: list[Look] = []
    flow: asyncio.subprocess.Process | None = None
    async with bench(bootstrap) as settings:
        worker = WorkerProcess(folder, declared(settings, folder), "soak")
        try:
            await asyncio.to_thread(worker.ready)
            flow = await load(settings, rate, 60 * minutes, USERS)
            process, ages, began = psutil.Process(worker.process.pid), Ages(), time.monotonic()
            while time.monotonic() - began < 60 * minutes:
                await asyncio.sleep(EVERY_S)
                if worker.process.poll() is not None:
                    raise RuntimeError(f"the worker ended with {worker.process.returncode}: {worker.says()[-2000:]}")
                with contextlib.suppress(httpx.TransportError):  # a busy machine: skip this sample
                    looks.append(await asyncio.to_thread(look, worker, process, ages, began))
                if looks and len(looks) % 60 == 0:
                    print(looks[-1], file=sys.stderr, flush=True)
            await flow.wait()
            if status := worker.terminate():
                raise RuntimeError(f"the worker ended with {status}: {worker.says()[-2000:]}")
        finally:
            worker.stop()
            if flow is not None and flow.returncode is None:
                flow.terminate()
    return looks


def plot(looks: list[Look], path: Path) -> None:
    """Plot a line per field."""
    labels = ("resident, MiB", "open handles", "data folder, MiB", "records that wait", "p99 age, ms")
    at = np.array([astuple(one) for one in looks])
    figure, axes = plt.subplots(len(labels), 1, sharex=True, figsize=(8, 10))
    for n, (axis, label) in enumerate(zip(axes, labels, strict=True), 1):
        axis.plot(at[:, 0], at[:, n], linewidth=0.8)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path)


def thirds(looks: list[Look], warm: float) -> dict[str, dict[str, float]]:
    """Return field -> medians of the first and of the last third after the warm-up."""
    settled = [one for one in looks if one.minute >= warm]
    third = max(1, len(settled) // 3)
    names = [f.name for f in fields(Look) if f.name not in ("minute", "events")]

    def of(part: list[Look], name: str) -> float:
        return float(round(statistics.median(getattr(one, name) for one in part), 1))

    return {name: {"first third": of(settled[:third], name), "last third": of(settled[-third:], name)} for name in names}


def main() -> None:
    """Do one run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--rate", type=float, default=RATE, help="events a second")
    asked = parser.parse_args()
    warm = min(WARM_MIN, asked.minutes / 4)
    with ApacheKafka(heap_mb=1024, properties=CLEANED) as broker:
        folder = broker.folder / "soak"
        folder.mkdir()
        looks = asyncio.run(watch(broker.bootstrap, folder, asked.minutes, asked.rate))
    RESULTS.mkdir(exist_ok=True)
    plot(looks, RESULTS / "soak.svg")
    figures = {**thirds(looks, warm), "events": round(looks[-1].events), "minutes": round(looks[-1].minute)}
    note = (
        f"{asked.rate:g} events/s of {USERS:,} users, a worker in a process of its own, broker and generator beside it; medians of the first and the "
        f"last third after {warm:g} minutes; results/soak.svg"
    )
    record("soak", figures, "MiB, handles, records, ms", note, looks=[[round(v, 2) for v in astuple(one)] for one in looks])


if __name__ == "__main__":
    main()
