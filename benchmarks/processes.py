"""Compares two `currents worker` processes with one, on two cores that the broker shares: python -m benchmarks.processes --workers 1 2."""

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvloop

from benchmarks.common import bench, cpu, declared, events, kafka, median, record, send
from streams.core.settings import Settings
from testkit.processes import WorkerProcess, wait_for

COUNTS, EVENTS, USERS, RUNS, START_S = (1, 2), 300_000, 20_000, 2, 300


@contextlib.contextmanager
def workers(settings: Settings, folder: Path, count: int) -> Iterator[list[WorkerProcess]]:
    """Run worker processes that share the tablets evenly."""
    path, found = declared(settings, folder), list[WorkerProcess]()
    try:
        for n in range(count):
            found.append(WorkerProcess(folder, path, f"{settings.worker.prefix}-{n}"))
        share = settings.worker.partitions / count
        wait_for("an even share of the tablets", lambda: all(w.is_ready() and w.metric("currents_tablets") == share for w in found), START_S)
        yield found
    finally:
        for w in found:
            w.process.terminate()
        for w in found:
            w.process.wait()


async def measure(bootstrap: str, folder: Path, count: int, total: int, encoder: str) -> tuple[float, float]:
    """Return (events/s of all workers together once everything is sent, CPU time of the workers per event, µs)."""
    async with bench(bootstrap, encoding={"encoder": encoder}) as settings:
        rows = list(events(total, USERS))
        with workers(settings, folder, count) as them:
            processes = [psutil.Process(w.process.pid) for w in them]

            def look() -> tuple[float, float, float]:
                return time.perf_counter(), sum(w.metric("currents_folded_total") for w in them), sum(map(cpu, processes))

            await send(settings, settings.platforms[0].topic, rows)
            began, before, own = look()
            while (now := look())[1] < total:
                if any(w.process.poll() is not None for w in them):
                    raise RuntimeError(f"a worker ended: {them[0].says()[-2000:]}")
                await asyncio.sleep(0.1)
            done = total - before
            return done / (now[0] - began), (now[2] - own) / done * 1e6


def main() -> None:
    """Record the median of several runs of each, in turn, and the ratio of two workers to one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--encoder", default="demo")
    a = parser.parse_args()
    runs: dict[int, list[tuple[float, float]]] = {n: [] for n in a.workers}
    with kafka() as bootstrap, tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        for _ in range(a.runs):
            for n in a.workers:
                runs[n].append(uvloop.run(measure(bootstrap, Path(folder), n, a.events, a.encoder)))
                print(n, runs[n][-1], flush=True)
    figures: dict[str, float] = {f"{n} processes": median(r[0] for r in found) for n, found in runs.items()}
    first, last = a.workers[0], a.workers[-1]
    figures[f"{last} over {first}"] = round(figures[f"{last} processes"] / figures[f"{first} processes"], 2)
    note = f"{a.events:,} events of {USERS:,} users, encoder {a.encoder}, `currents worker` processes, Apache Kafka on the same cores; goal 1.3"
    used = {f"{n} processes": round(min(r[1] for r in found), 1) for n, found in runs.items()}
    record("processes", figures, "events/s of all together, from when all is sent", note, cpu_us_an_event=used)


if __name__ == "__main__":
    main()
