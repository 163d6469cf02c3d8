"""Reads while events flow in: `currents serve` in a process of its own, and the worker's own endpoint for comparison."""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import httpx
import orjson
import uvloop

from benchmarks.common import bench, events, folded, kafka, load, record, send, working
from streams.settings import Settings
from streams.worker import Worker
from tests.apache import free_port

USERS, EVENTS, PER_SECOND = 20_000, 200_000, 2000
SINGLES, BATCHES, SECONDS = 1000, 50, 25
MIXES = {"singles alone": (SINGLES, 0), "batches alone": (0, BATCHES), "both": (SINGLES, BATCHES)}


@asynccontextmanager
async def replica(settings: Settings, worker: Worker) -> AsyncIterator[tuple[str, int]]:
    """URL and process id of a replica that has caught up."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        own = {
            "CURRENTS_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
            "CURRENTS_WORKER__PREFIX": settings.worker.prefix,
            "CURRENTS_SERVE__PORT": str(port),
            "CURRENTS_SERVE__DATA_DIR": folder,
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "streams.cli", "serve", env={**os.environ, **own})
        try:
            async with httpx.AsyncClient() as client:
                while not await _ready(client, f"http://127.0.0.1:{port}"):
                    if worker.failed.done():
                        await worker.failed
                    await asyncio.sleep(0.1)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            await process.wait()


async def _ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def read(url: str, singles: float, batches: float, seconds: float) -> dict[str, dict[str, float]]:
    """Latencies as the generator saw them."""
    arguments = (url, str(singles), str(batches), str(seconds), str(USERS))
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.readers", *arguments, stdout=asyncio.subprocess.PIPE)
    text, _ = await process.communicate()
    found: dict[str, dict[str, float]] = orjson.loads(text)
    return found


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has had."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(bootstrap: str, seconds: float) -> dict[str, Any]:
    """Fill the windows first; then each mix, on the replica and on the worker, with events flowing in."""
    figures: dict[str, Any] = {}
    async with bench(bootstrap) as settings:
        await send(settings, settings.platforms[0].topic, events(EVENTS, USERS))
        async with working(settings) as worker:
            await folded(worker, EVENTS)
            async with replica(settings, worker) as (url, pid):
                flow = await load(settings, PER_SECOND, seconds * 2 * len(MIXES) + 60, USERS)
                await asyncio.sleep(3)
                for name, (singles, batches) in MIXES.items():
                    before, began = cpu_s(pid), time.perf_counter()
                    figures[f"replica, {name}"] = await read(url, singles, batches, seconds)
                    figures[f"replica, {name}"]["its CPU"] = round((cpu_s(pid) - before) / (time.perf_counter() - began), 2)
                for name, (singles, batches) in MIXES.items():
                    figures[f"worker, {name}"] = await read(worker.url, singles, batches, seconds)
                p50, p99 = worker.metrics.age.percentiles(50, 99)
                figures["event age meanwhile"] = {"p50": round(p50), "p99": round(p99)}
                flow.terminate()
                await flow.wait()
    return figures


def main() -> None:
    """One run; --seconds for each of the six mixes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=SECONDS)
    seconds = parser.parse_args().seconds
    with kafka() as bootstrap:
        before = os.getloadavg()[0]
        figures = uvloop.run(measure(bootstrap, seconds))
    parser_name = "httptools" if find_spec("httptools") else "h11"
    record(
        "reads",
        figures,
        "ms from when a read was due to its whole answer",
        f"{SINGLES} single reads/s, {BATCHES} batches of 100 a second, {PER_SECOND} events/s into a worker meanwhile, {USERS:,} users; "
        f"broker, worker, replica and generators on the same cores, load before: {before:.1f}; {parser_name}; goals of the replica: p99 ≤ 5 and ≤ 20",
    )


if __name__ == "__main__":
    main()
