"""Events/s of one worker that does the whole job on a CPU and catches up, by encoder and by number of users. All windows are full from the start.

python -m benchmarks.job --users 1 10 100000 1000000 --events 40000
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import uvloop

from benchmarks.common import ITEMS, bench, cpu, events, folded, kafka, record, send, working
from benchmarks.disk import windows
from schemas.items import item_key
from streams.processes.worker import Worker
from streams.state.tablet import FAMILIES, Tablet
from streams.transport.sender import partition_of

UNFINISHED = ("rocksdb.compaction-pending", "rocksdb.num-running-compactions", "rocksdb.mem-table-flush-pending")
USERS, EVENTS, LENGTH, LOT, THREADS = (1, 10, 100_000, 1_000_000), 40_000, 32, 5000, 2
PRESETS = ("s", "s-int8", "xs", "xs-int8")


class Measured(NamedTuple):
    """The figures of one catch-up."""

    per_s: float
    """Events a second."""
    cpu_us: float
    """CPU time of the worker's process per event, µs."""
    broker_us: float
    """CPU time of the broker per event, µs; 0 if its process is unknown."""
    windows: float
    """Encoded windows per event; less than 1 if users have several events in a batch."""


def fresh(name: str, folder: Path, length: int = LENGTH) -> str:
    """Make a bundle of a preset with untrained weights, and return its folder."""
    out = folder / f"fresh-{name}-{length}"
    if not out.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.fresh", name, str(length), str(out)], check=True)
    return str(out)


def fill(folder: Path, users: int, partitions: int) -> None:
    """Write full windows for all users to the tablets of a worker that has not started yet."""
    r, keys = np.random.default_rng(0), np.array([item_key(f"shop:i{n}") for n in range(ITEMS)], np.uint64)
    tablets = [Tablet(p, folder / f"tablet-{p}") for p in range(partitions)]
    for start in range(0, users, LOT):
        names = [f"u{n}".encode() for n in range(start, min(users, start + LOT))]
        rows: list[list[tuple[bytes, bytes | None]]] = [[] for _ in tablets]
        for name, window in zip(names, windows(len(names), r, keys), strict=True):
            rows[partition_of(name, partitions)].append((name, window))
        for tablet, mine in zip(tablets, rows, strict=True):
            tablet.write(mine)
    for tablet in tablets:
        tablet.flush()
        while any(
            tablet.family(f).property_int_value(p) for f in FAMILIES for p in UNFINISHED
        ):  # compactions of the filling must not run during the measurement
            time.sleep(0.1)
        tablet.close()


def linked(source: Path, target: Path) -> None:
    """Copy tablets. Links table files instead of copying them, because RocksDB never changes a table file."""

    def copy(a: str, b: str) -> None:
        if a.endswith(".sst"):
            os.link(a, b)
        else:
            shutil.copy2(a, b)

    for tablet in source.glob("tablet-*"):
        shutil.copytree(tablet, target / tablet.name, copy_function=copy)


async def caught_up(worker: Worker, total: int, broker: psutil.Process | None = None) -> Measured:
    """Measure a worker while it handles the waiting events, from its first batch on."""
    me, value = psutil.Process(), worker.metrics.value
    await folded(worker, 1)
    began, before, encoded, own, its = time.perf_counter(), value("currents_folded_total"), value("currents_profiles_total"), cpu(me), cpu(broker)
    await folded(worker, total)
    done = total - before
    took, own, its = time.perf_counter() - began, cpu(me) - own, cpu(broker) - its
    return Measured(done / took, own / done * 1e6, its / done * 1e6, (value("currents_profiles_total") - encoded) / done)


async def measure(
    bootstrap: str,
    encoder: str,
    users: int,
    total: int,
    filled: Path | None,
    broker: psutil.Process | None = None,
    threads: int = 1,
    **sections: dict[str, Any],
) -> Measured:
    """Start a worker with filled tablets so that it learns the items, and stop it. Then send events, start the worker again and measure it."""
    async with bench(bootstrap, encoding={"encoder": encoder, "device": "cpu", "threads": threads}, **sections) as settings:
        if filled is not None:
            linked(filled, Path(settings.worker.data_dir))
        async with working(settings):
            pass
        await send(settings, settings.platforms[0].topic, events(total, users))
        async with working(settings) as worker:
            return await caught_up(worker, total, broker)


def main() -> None:
    """Measure every number of users with every preset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, nargs="+", default=USERS)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--bundles", type=Path, help="folder in which the bundles stay, for the next run")
    parser.add_argument("--threads", type=int, default=THREADS, help="encoding.threads")
    a = parser.parse_args()
    figures: dict[str, dict[str, int]] = {f"preset {name}": {} for name in a.presets}
    cpu: dict[str, dict[str, float]] = {f"preset {name}": {} for name in a.presets}
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as tmp, kafka() as bootstrap:
        folder = Path(tmp)
        bundles = {name: fresh(name, a.bundles or folder) for name in a.presets}
        for users in a.users:
            filled = folder / f"users-{users}"
            fill(filled, users, 4)
            for name, bundle in bundles.items():
                found = uvloop.run(measure(bootstrap, bundle, users, a.events, filled, threads=a.threads))
                figures[f"preset {name}"][f"{users:,} users"] = round(found.per_s)
                cpu[f"preset {name}"][f"{users:,} users"] = round(found.cpu_us, 1)
                print(name, users, found, flush=True)
            shutil.rmtree(filled)
    note = (
        f"{a.events:,} events, windows of 64 full from the start, the encoder reads {LENGTH}; bundles with fresh weights, "
        f"ONNX Runtime, encoding.threads = {a.threads}; "
        "int8 as made, not judged; goal 5,000 with S and 10,000 with XS, flat"
    )
    record("job", figures, "events/s in one worker, catching up", note, cpu_us_an_event=cpu)


if __name__ == "__main__":
    main()
