"""Latency of reads under live events: `currents serve` beside a worker, the worker's own endpoint, and `currents serve` beside a niced worker.

A niced worker is started with `nice -n 10 currents worker`: other processes get a core first.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import uvloop

from benchmarks.common import bench, cpu, declared, events, kafka, load, record, send
from benchmarks.soak import Ages, edges
from testkit.processes import ReplicaProcess, WorkerProcess, wait_for

USERS, EVENTS, PER_SECOND = 20_000, 200_000, 2000
SINGLES, BATCHES, SECONDS, START_S = 1000, 50, 20, 300
MIXES = {"singles alone": (SINGLES, 0), "batches alone": (0, BATCHES), "both": (SINGLES, BATCHES)}
NICE = 10


def give_way(pid: int) -> None:
    """Set the niceness of a running process. On Linux every thread has its own niceness, and new threads inherit their parent's."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.setpriority(os.PRIO_PROCESS, int(thread), NICE)


async def read(url: str, singles: float, batches: float, seconds: float) -> dict[str, Any]:
    """Run the read generator and return its latencies."""
    arguments = (url, str(singles), str(batches), str(seconds), str(USERS))
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.readers", *arguments, stdout=asyncio.subprocess.PIPE)
    text, _ = await process.communicate()
    found: dict[str, Any] = orjson.loads(text)
    return found


async def mixed(name: str, asked: WorkerProcess, worker: WorkerProcess, seconds: float) -> dict[str, Any]:
    """Measure every mix of reads on one process. Returns latencies, the process's CPU and the age of the worker's profiles."""
    process, ages, figures = psutil.Process(asked.process.pid), Ages(), {}
    for mix, (singles, batches) in MIXES.items():
        ages.p99_ms(edges(worker.get("/metrics").text))
        before, began = cpu(process), time.perf_counter()
        found = await read(asked.url, singles, batches, seconds)
        found["its CPU"] = round((cpu(process) - before) / (time.perf_counter() - began), 2)
        found["event age p99, at most"] = round(ages.p99_ms(edges(worker.get("/metrics").text)))
        figures[f"{name}, {mix}"] = found
        print(mix, found, file=sys.stderr, flush=True)
    return figures


async def measure(bootstrap: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Fill the windows, then measure each mix on the replica and on the worker under live events."""
    async with bench(bootstrap) as settings:
        await send(settings, settings.platforms[0].topic, events(EVENTS, USERS))
        config = declared(settings, folder)
        worker = WorkerProcess(folder, config, "worker")
        replica = ReplicaProcess(folder, config, "replica")
        flow: asyncio.subprocess.Process | None = None
        try:
            await asyncio.to_thread(wait_for, "all events", lambda: worker.is_ready() and worker.metric("currents_folded_total") >= EVENTS, START_S)
            await asyncio.to_thread(replica.ready)
            flow = await load(settings, PER_SECOND, seconds * 4 * len(MIXES) + 60, USERS)
            await asyncio.sleep(3)
            figures = await mixed("replica", replica, worker, seconds)
            figures |= await mixed("worker", worker, worker, seconds)
            give_way(worker.process.pid)
            figures |= await mixed(f"replica beside a worker of niceness {NICE}", replica, worker, seconds)
        finally:
            for process in (replica, worker):
                process.stop()
            if flow is not None:
                flow.terminate()
                await flow.wait()
    return figures


def main() -> None:
    """Do one run, with --seconds for each of the nine mixes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=SECONDS)
    seconds = parser.parse_args().seconds
    with kafka() as bootstrap, tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        before = os.getloadavg()[0]
        figures = uvloop.run(measure(bootstrap, Path(folder), seconds))
    record(
        "reads",
        figures,
        "ms from when a read was due to its whole answer",
        f"{SINGLES} single reads/s, {BATCHES} batches of 100 a second, {PER_SECOND} events/s into a worker meanwhile, {USERS:,} users; "
        f"broker, worker, replica and generators on the same cores, load before: {before:.1f}; goals of the replica: p99 ≤ 5 and ≤ 20",
    )


if __name__ == "__main__":
    main()
