"""Rebuilding tablets from their changelogs: rows a second, with an empty data folder."""

import shutil
import time
from pathlib import Path

import uvloop

from benchmarks.common import bench, events, folded, kafka, median, record, send, working

N, USERS, RUNS = 300_000, 100_000, 3


async def measure(bootstrap: str) -> tuple[float, float]:
    """(rows/s, rows)."""
    async with bench(bootstrap) as settings:
        await send(settings, settings.platforms[0].topic, events(N, USERS))
        async with working(settings) as worker:
            await folded(worker, N)
        for tablet in Path(settings.worker.data_dir).glob("tablet-*"):
            shutil.rmtree(tablet)
        async with working(settings) as worker:
            while not worker.metrics.value("currents_restored_rows_total"):
                await _tick()
            began, before = time.perf_counter(), worker.metrics.value("currents_restored_rows_total")
            while not worker.ready():
                await _tick()
            rows = worker.metrics.value("currents_restored_rows_total")
            return (rows - before) / (time.perf_counter() - began), rows


async def _tick() -> None:
    import asyncio

    await asyncio.sleep(0.01)


def main() -> None:
    """Median of three runs."""
    with kafka() as bootstrap:
        runs = [uvloop.run(measure(bootstrap)) for _ in range(RUNS)]
    figures = {"rows/s": median(r[0] for r in runs), "rows": median(r[1] for r in runs)}
    record(
        "restore", figures, "changelog rows/s", "windows and profiles of 100,000 users, 4 tablets at once, after the first rows arrived; goal 100,000"
    )


if __name__ == "__main__":
    main()
