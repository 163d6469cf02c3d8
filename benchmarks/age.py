"""Live event→profile age, from a record's creation by a load generator to its acknowledged profile, at shares of a worker's maximum rate.

All windows are full from the start. The maximum rate is the worker's rate while the generator on the same machine offers more events:
`python -m benchmarks.age --shares .5 .9 --runs 1`.
"""

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop

from benchmarks.common import PARTITIONS, bench, cpu, kafka, load, median, record, working
from benchmarks.job import fill, linked
from streams.core.settings import Settings
from streams.processes.worker import Worker

SHARES, FIXED, SECONDS, WARM_S, USERS, RUNS, FLOOD = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0), (5000,), 25.0, 10.0, 20_000, 1, 30_000


class Setup(NamedTuple):
    """The parameters that all runs share."""

    bootstrap: str
    filled: Path
    encoder: str
    linger_ms: float
    seconds: float


@contextlib.asynccontextmanager
async def offered(setup: Setup, per_second: float) -> AsyncIterator[tuple[Worker, "asyncio.subprocess.Process"]]:
    """Run a worker under load past its first seconds. Yields the worker and the generator's process."""
    worker_section, encoding = {"linger_ms": setup.linger_ms}, {"encoder": setup.encoder}
    async with bench(setup.bootstrap, worker=worker_section, encoding=encoding) as settings:
        linked(setup.filled, Path(settings.worker.data_dir))
        async with working(settings) as worker:
            process = await load(settings, per_second, setup.seconds, USERS)
            await asyncio.sleep(WARM_S)
            yield worker, process
            if worker.failed.done():
                await worker.failed


async def most(setup: Setup, flood: float) -> float:
    """Return the events/s that a worker folds while the generator offers more."""
    async with offered(setup, flood) as (worker, process):
        before, began = worker.metrics.value("currents_folded_total"), asyncio.get_running_loop().time()
        await process.wait()
        lag, after = worker.backlog.records(), worker.metrics.value("currents_folded_total")
        if not lag:
            print(f"the generator offered no more than was taken: {flood}/s is too little, or the generator too slow", flush=True)
        return (after - before) / (asyncio.get_running_loop().time() - began)


async def measure(setup: Setup, per_second: float) -> dict[str, float]:
    """Return p50 and p99 of the ages, ms, and the worker's CPU use."""
    async with offered(setup, per_second) as (worker, process):
        me, loop = psutil.Process(), asyncio.get_running_loop()
        own, began = cpu(me), loop.time()
        worker.metrics.age.forget()
        await process.wait()
        cores = (cpu(me) - own) / (loop.time() - began)
        p50, p99 = worker.metrics.age.percentiles(50, 99)
        return {"events/s": round(per_second), "p50": round(p50), "p99": round(p99), "cores": round(cores, 2)}


def main() -> None:
    """Measure the maximum rate, then ages at shares of it and at fixed rates. Of several runs the run with the median p99 counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--rates", type=float, nargs="*", default=FIXED, help="events/s, besides")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--flood", type=float, default=FLOOD, help="events/s that are offered to find the most")
    parser.add_argument("--encoder", default="baseline")
    parser.add_argument("--linger-ms", type=float, default=Settings().worker.linger_ms)
    a = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with kafka() as bootstrap, tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        setup = Setup(bootstrap, Path(folder), a.encoder, a.linger_ms, a.seconds)
        fill(setup.filled, USERS, PARTITIONS)
        maximum = median(uvloop.run(most(setup, a.flood)) for _ in range(a.runs))
        print(f"most: {maximum}/s", flush=True)
        wanted = {f"{share:.0%}": share * maximum for share in a.shares} | {f"{rate:.0f}/s": rate for rate in a.rates}
        for name, per_second in wanted.items():
            runs = sorted((uvloop.run(measure(setup, per_second)) for _ in range(a.runs)), key=lambda r: r["p99"])
            figures[name] = runs[len(runs) // 2]
            print(name, figures[name], flush=True)
    note = (
        f"shares of {maximum:,.0f} events/s, the most with the generator beside it; {a.encoder} encoder, whole path, full windows of 64, "
        f"worker.linger_ms {a.linger_ms:g}; goal p99 ≤ 250 at half, ≤ 1,000 at 90 %, ≤ 300 at 5000/s"
    )
    record("age", figures, "ms from Kafka to the acknowledged profile", note, most=maximum)


if __name__ == "__main__":
    main()
