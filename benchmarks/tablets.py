"""Cost of a tablet in memory, file handles and time, and the start-up time of a worker with many tablets. Bounds the partitions of a worker.

python -m benchmarks.tablets --steps 32 128 512 2048 --workers 8 64 256
"""

import argparse
import asyncio
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import uvloop
from rocksdict import Cache

from benchmarks.common import bench, kafka, record, working
from streams.state.tablet import Tablet

STEPS, WORKERS, ROWS, CACHE_MB = (32, 128, 512), (8, 32, 128), 20, 64
WINDOW, PROFILE = bytes(1) + os.urandom(64 * 32), os.urandom(900)


def used() -> tuple[float, int, int]:
    """Return (resident MiB, file handles, threads) of this process."""
    process = psutil.Process()
    return process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()


def fill(tablet: Tablet) -> None:
    """Write a few users to a tablet, as a batch does."""
    users = [f"user-{tablet.partition}-{n}".encode() for n in range(ROWS)]
    tablet.write(((u, WINDOW) for u in users), ((u, PROFILE) for u in users), offsets={"windows": ROWS, "profiles": ROWS}, now_ms=1)


def many(folder: Path, steps: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Open new tablets in one process in steps and write to each; then flush, close and reopen all of them."""
    figures, tablets, cache = dict[str, dict[str, float]](), list[Tablet](), Cache(CACHE_MB << 20)
    mib, handles, _ = used()

    def opened(n: int) -> Tablet:
        return Tablet(n, folder / f"tablet-{n}", cache)

    for step in steps:
        began, cpu, first = time.perf_counter(), time.process_time(), len(tablets)
        tablets += [opened(n) for n in range(first, step)]
        took, cpu = ((t - b) / (step - first) * 1000 for t, b in ((time.perf_counter(), began), (time.process_time(), cpu)))
        for tablet in tablets[first:]:
            fill(tablet)
        now, fds, threads = used()
        figures[f"{step} tablets"] = {
            "MiB": round(now - mib), "KiB each": round((now - mib) * 1024 / step), "file handles each": round((fds - handles) / step, 1),
            "threads": threads, "ms to make one": round(took, 1), "CPU ms to make one": round(cpu, 1),
        }  # fmt: skip
        print(step, figures[f"{step} tablets"], flush=True)
    again, n = dict[str, float](), len(tablets)
    for name, work in (("flush", Tablet.flush), ("close", Tablet.close)):
        began = time.perf_counter()
        for tablet in tablets:
            work(tablet)
        again[f"ms to {name} one"] = round((time.perf_counter() - began) / n * 1000, 1)
    began, cpu, cache = time.perf_counter(), time.process_time(), Cache(CACHE_MB << 20)
    tablets = [opened(k) for k in range(n)]
    again["ms to open one"] = round((time.perf_counter() - began) / n * 1000, 1)
    again["CPU ms to open one"] = round((time.process_time() - cpu) / n * 1000, 1)
    began = time.perf_counter()
    assert all(tablet.offset("windows") == (ROWS, 1) for tablet in tablets)
    again["ms to read its offset"] = round((time.perf_counter() - began) / n * 1000, 3)
    now, fds, _ = used()
    again |= {"KiB each": round((now - mib) * 1024 / n), "file handles each": round((fds - handles) / n, 1)}
    again["KiB on disk each"] = round(sum(f.stat().st_blocks for f in folder.rglob("*")) / 2 / n)
    for tablet in tablets:
        tablet.close()
    last = figures[f"{n} tablets"]
    return figures | {f"{n} tablets, closed and opened again": again, "each": {"KiB": last["KiB each"], "file handles": last["file handles each"]}}


async def worker(bootstrap: str, partitions: int) -> dict[str, float]:
    """Return seconds from the start of a worker with all partitions until it is ready, first with empty changelogs, then with existing data."""
    async with bench(bootstrap, worker={"partitions": partitions}) as settings:
        took = list[float]()
        mib, handles, _ = used()
        for _ in range(2):
            began = time.perf_counter()
            async with working(settings) as w:
                while not w.ready():
                    if w.failed.done():
                        await w.failed
                    await asyncio.sleep(0.02)
                took.append(time.perf_counter() - began)
                now, fds, _ = used()
                cpu = psutil.Process().cpu_times()
                await asyncio.sleep(5)
                idle = psutil.Process().cpu_times()
        return {
            "s to ready, first": round(took[0], 1), "s to ready, again": round(took[1], 1), "file handles": fds - handles, "MiB": round(now - mib),
            "cores while idle": round((idle.user + idle.system - cpu.user - cpu.system) / 5, 3),
        }  # fmt: skip


def main() -> None:
    """Measure RocksDB alone, then whole workers on Apache Kafka."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="tablets in one process")
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS, help="partitions of a whole worker; none: no Kafka")
    a = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = Path(tempfile.mkdtemp(prefix="currents-bench-"))
    try:
        figures: dict[str, Any] = many(folder, tuple(a.steps))
    finally:
        shutil.rmtree(folder)
    print(figures, flush=True)
    if a.workers:
        with kafka() as bootstrap:
            for partitions in a.workers:
                figures[f"worker of {partitions}"] = uvloop.run(worker(bootstrap, partitions))
                print(figures[f"worker of {partitions}"], flush=True)
    note = f"{ROWS} users in each tablet, one block cache of {CACHE_MB} MiB for all; workers: an idle one that owns all partitions, on one broker"
    record("tablets", figures, "of one process", note)


if __name__ == "__main__":
    main()
