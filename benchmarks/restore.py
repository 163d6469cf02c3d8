"""Rows a second of restoring tablets from their changelogs into an empty data folder, with full windows and portraits of ten interests.

python -m benchmarks.restore --users 1000000
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.common import bench, kafka, median, record, send, working
from benchmarks.disk import profiler_of, windows
from streams.core.settings import Settings

USERS, RUNS, LOT = 100_000, 3, 5000


async def written(settings: Settings, users: int) -> None:
    """Write every user's window and profile to the changelogs as a worker publishes them, with users in random order."""
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        profiler, keys = profiler_of(Path(folder))
        r = np.random.default_rng(0)
        order = r.permutation(users)
        for start in range(0, users, LOT):
            names = [f"u{n}".encode() for n in order[start : start + LOT]]
            full = windows(len(names), r, keys)
            profiles, _ = profiler(names, full, [0] * len(names), time.time_ns() // 1_000_000)
            await send(settings, settings.topic("windows"), zip(names, full, strict=True))
            await send(settings, settings.topic("profiles"), zip(names, profiles, strict=True))


async def measure(bootstrap: str, users: int) -> tuple[float, float]:
    """Return (rows/s, seconds) from the assignment of the tablets until the worker is ready. An earlier start of the worker learns the items."""
    async with bench(bootstrap) as settings:
        async with working(settings):
            pass
        await written(settings, users)
        async with working(settings) as worker:
            while not worker.metrics.value("currents_restored_rows_total"):
                await asyncio.sleep(0.01)
            began, before = time.perf_counter(), worker.metrics.value("currents_restored_rows_total")
            while not worker.ready():
                await asyncio.sleep(0.01)
            took, rows = time.perf_counter() - began, worker.metrics.value("currents_restored_rows_total")
            return (rows - before) / took, took


def main() -> None:
    """Record the median of three runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=USERS)
    users = parser.parse_args().users
    with kafka() as bootstrap:
        runs = [uvloop.run(measure(bootstrap, users)) for _ in range(RUNS)]
    figures = {"rows/s": median(r[0] for r in runs), "rows": 2 * users, "seconds": round(statistics.median(r[1] for r in runs), 2)}
    note = (
        f"windows of 64 and profiles of {users:,} users, 4 tablets at once, after the first rows arrived; "
        "goal 200,000 (of rows of all sizes), and 10 s for 1,000,000 users"
    )
    record("restore", figures, "changelog rows/s", note)


if __name__ == "__main__":
    main()
