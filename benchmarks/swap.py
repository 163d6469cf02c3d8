"""A change of encoder under load: what live events wait for, and how fast users go over behind them."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.common import bench, kafka, load, record, working
from streams.releases import announce
from tests.bundles import variant

RATE, USERS, WARM_S, QUIET_S = 500, 20_000, 15, 15


async def measure(bootstrap: str, folder: Path, number: int) -> dict[str, float]:
    """Ages before the change and from its announcement until everybody is over; users a second meanwhile."""
    sections: dict[str, Any] = {"encoding": {"encoder": "demo"}, "releases": {"follow": "on", "reencode_per_s": 1e6}}
    async with bench(bootstrap, **sections) as settings, working(settings) as worker:
        process = await load(settings, RATE, 600, USERS)
        await asyncio.sleep(WARM_S)
        worker.metrics.age.forget()
        await asyncio.sleep(QUIET_S)
        before = worker.metrics.age.percentiles(50, 99)
        release = variant(folder / f"v{number}", f"v{number}", number)
        worker.metrics.age.forget()
        await announce(settings.kafka, settings.topic("releases"), "serving", release)
        while worker.encoder.version != release.version:
            await asyncio.sleep(0.005)
        began, value = time.perf_counter(), worker.metrics.value
        loading = worker.metrics.age.percentiles(50, 99)
        worker.metrics.age.forget()
        await asyncio.sleep(0.1)
        while worker.reencoder.busy():
            await asyncio.sleep(0.02)
        took, again = time.perf_counter() - began, value("currents_released_profiles_total")
        during = worker.metrics.age.percentiles(50, 99)
        process.terminate()
        await process.wait()
        return {
            "age p99 before": round(before[1]), "age p99 while it loads": round(loading[1]), "age p99 while users go over": round(during[1]),
            "switch, ms": round(value("currents_swap_seconds_sum") * 1000, 2), "users over": again, "users/s": round(again / took),
        }  # fmt: skip


def main() -> None:
    """Three changes; the one with the median age while users go over."""
    with kafka() as bootstrap, tempfile.TemporaryDirectory() as folder:
        runs = sorted((uvloop.run(measure(bootstrap, Path(folder), n)) for n in range(3)), key=lambda r: r["age p99 while users go over"])
    record("swap", runs[1], "ms, users/s", f"shipped sequence encoder to another, {RATE} live events/s, no rate set for the others")


if __name__ == "__main__":
    main()
