"""Overload: batches, ages, memory and lag of a worker at a multiple of its maximum rate and afterwards, and a check for lost events. Plotted.

python -m benchmarks.overload --ratio 10 --seconds 300 --after 600

After the run the worker handles the whole backlog, however long that takes. Then the benchmark counts the log, and compares the windows of a sample
of users with the offline fold of the whole log. A reader in a separate process reads profiles during the whole run.
"""

import argparse
import asyncio
import math
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import orjson
import psutil
import uvloop
from aiokafka import TopicPartition

from benchmarks.common import ITEMS, PARTITIONS, RESULTS, bench, kafka, load, median, record, send, working
from benchmarks.whole import sustained
from streams.audit.windows import offline_windows, wrong
from streams.core.settings import Settings
from streams.demo.live import settled
from streams.processes.worker import Worker
from streams.transport.reading import read_to_end, reader

mpl.use("svg")
from matplotlib import pyplot as plt

CALM_S, STORM_S, AFTER_S, CALM, RATIO, USERS = 8.0, 15.0, 45.0, 1500, 2.0, 20_000
READS, SAMPLE = 50, 500_000  # reads a second; approximate number of events whose windows are compared


class Look(NamedTuple):
    """One sample of the worker's state; there are two a second."""

    at_s: float
    batch: float
    """Events in a batch."""
    per_s: float
    """Events a second."""
    p99_ms: float
    """Age of profiles."""
    mib: float
    """Resident memory."""
    lag: float
    """Records that wait."""


class Seen(NamedTuple):
    """The results of one run."""

    looks: list[Look]
    sent: int
    """Events in the platform's topic."""
    unified: int
    """Events in the unified topic."""
    wrong: int
    """Users whose window differs from the offline fold of the log."""
    compared: int
    """Users whose windows were compared."""
    reads: dict[str, float]
    """Latencies that the reader measured during the storm."""
    drained_s: float
    """Time from the end of the storm until no record waited."""


async def watch(bootstrap: str, calm_rate: float, storm: float, storm_s: float, after_s: float) -> Seen:
    """Run calm, storm and calm; handle the backlog; then check the result."""
    looks, process, reads = [], psutil.Process(), dict[str, float]()
    async with bench(bootstrap) as settings, working(settings) as worker:
        value, whole = worker.metrics.value, CALM_S + storm_s + after_s
        await send(settings, settings.platforms[0].topic, one_each())  # every user has a profile, so an answer other than 200 is the worker's fault
        while value("currents_folded_total") < USERS or worker.backlog.records():
            if worker.failed.done():
                await worker.failed
            await asyncio.sleep(0.1)
        began = time.perf_counter()
        calm = await load(settings, calm_rate, whole, USERS)
        stormy = asker = None
        last = [value("currents_folded_total"), value("currents_batch_seconds_count"), 0.0]
        worker.metrics.age.forget()
        while (now := time.perf_counter() - began) < whole:
            if stormy is None and now > CALM_S:
                stormy, asker = await load(settings, storm, storm_s, USERS), await asking(worker, storm_s)
            await asyncio.sleep(0.5)
            if worker.failed.done():
                await worker.failed
            at = time.perf_counter() - began
            folded, batches = value("currents_folded_total"), value("currents_batch_seconds_count")
            done, lots, took = folded - last[0], batches - last[1], at - last[2]
            mib = process.memory_info().rss / 2**20
            looks.append(Look(at, done / lots if lots else 0.0, done / took, worker.metrics.age.percentiles(99)[0], mib, worker.backlog.records()))
            worker.metrics.age.forget()
            last = [folded, batches, at]
        calm.terminate()
        await calm.wait()
        if stormy is not None and asker is not None:
            await stormy.wait()
            out, _ = await asker.communicate()
            reads = orjson.loads(out)["single"]
        total = await records(settings, settings.platforms[0].topic)
        await settled(worker, math.inf)
        calm_again = next((look.at_s for look in looks if look.at_s > CALM_S + storm_s and look.lag < calm_rate), time.perf_counter() - began)
        bad, compared = await compared_with_log(settings, worker, max(1, round(total / SAMPLE)))
        return Seen(looks, total, await records(settings, settings.topic("events")), bad, compared, reads, calm_again - CALM_S - storm_s)


def one_each() -> Iterator[tuple[bytes, bytes]]:
    """Yield one event per user."""
    now = time.time_ns() // 1_000_000
    for n in range(USERS):
        yield f"u{n}".encode(), orjson.dumps({"account": f"u{n}", "item": f"i{n % ITEMS}", "behavior": "view", "time": now, "id": f"o{n}"})


async def asking(worker: Worker, seconds: float) -> asyncio.subprocess.Process:
    """Start a process that reads profiles at a rate as long as the storm lasts."""
    arguments = (worker.url, str(READS), "0", str(seconds), str(USERS))
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.readers", *arguments, stdout=asyncio.subprocess.PIPE)


async def compared_with_log(settings: Settings, worker: Worker, of: int) -> tuple[int, int]:
    """Compare every `of`-th user's stored window with the offline fold of the log. Returns (wrong windows, compared users)."""

    def chosen(user: bytes) -> bool:
        return zlib.crc32(user) % of == 0

    consumer = reader(settings.kafka)
    await consumer.start()
    try:
        first = await consumer.beginning_offsets([TopicPartition(settings.topic("events"), p) for p in range(PARTITIONS)])
        log = [r async for _, rows in read_to_end(consumer, first) for r in rows if chosen(r.key)]
    finally:
        await consumer.stop()
    expected, _ = offline_windows(log, {p.code: p.name for p in settings.platforms}, settings.encoding.policy)
    stored = {user: window for tablet in worker.tablets for user, window in tablet.scan("windows") if chosen(user)}
    return wrong(expected, stored), len(expected)


async def records(settings: Settings, topic: str) -> int:
    """Return the number of records in a topic. For the platform topic this is the number that the generators really sent."""
    consumer = reader(settings.kafka)
    await consumer.start()
    try:
        return sum((await consumer.end_offsets([TopicPartition(topic, p) for p in range(PARTITIONS)])).values())
    finally:
        await consumer.stop()


def plot(looks: list[Look], storm_s: float, path: Path) -> None:
    """Plot five lines over time."""
    figure, axes = plt.subplots(5, 1, sharex=True, figsize=(8, 11))
    shown = (("batch", "events in a batch"), ("per_s", "events/s"), ("p99_ms", "p99 age, ms"), ("mib", "resident, MiB"), ("lag", "records that wait"))
    for axis, (field, label) in zip(axes, shown, strict=True):
        axis.plot([look.at_s for look in looks], [getattr(look, field) for look in looks], linewidth=1)
        axis.axvspan(CALM_S, CALM_S + storm_s, alpha=0.15, color="tab:red")
        axis.set_ylabel(label)
    axes[-1].set_xlabel("seconds; the storm is shaded")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Offer a multiple of the worker's catch-up rate for a while."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ratio", type=float, default=RATIO, help="times the sustainable rate")
    parser.add_argument("--seconds", type=float, default=STORM_S, help="of the storm")
    parser.add_argument("--after", type=float, default=AFTER_S, help="seconds that are watched after it")
    parser.add_argument("--sustainable", type=float, help="events/s; measured if not given")
    parser.add_argument("--calm", type=float, default=CALM, help="events/s before and after")
    a = parser.parse_args()
    usual = (a.ratio, a.seconds, a.after) == (RATIO, STORM_S, AFTER_S)
    name = "overload" if usual else f"overload-{a.ratio:g}x-{a.seconds:g}s"
    with kafka(compacts=True) as bootstrap:
        sustainable = a.sustainable or median(sustained(bootstrap) for _ in range(3))
        seen = uvloop.run(watch(bootstrap, a.calm, a.ratio * sustainable, a.seconds, a.after))
    looks, total = seen.looks, seen.sent
    RESULTS.mkdir(exist_ok=True)
    plot(looks, a.seconds, RESULTS / f"{name}.svg")
    storm, after = (CALM_S + 2, CALM_S + a.seconds), CALM_S + a.seconds

    def during(begin: float, end: float, field: str) -> float:
        return median(getattr(look, field) for look in looks if begin <= look.at_s < end)

    settled = next((look.at_s for look in looks if look.at_s > after and 0 < look.p99_ms < 1000), None)
    offered = (total - USERS - a.calm * (CALM_S + a.seconds + a.after)) / a.seconds + a.calm
    figures = {
        "wanted": round(a.ratio * sustainable + a.calm),
        "offered": round(offered),
        "events/s in the storm": during(*storm, "per_s"),
        "batch before": during(2, CALM_S, "batch"),
        "batch in the storm": during(*storm, "batch"),
        "batch at the end": during(after + a.after - 8, 1e9, "batch"),
        "p99 age at the end, ms": during(after + a.after - 8, 1e9, "p99_ms"),
        "seconds after the storm until p99 < 1 s": "not within the run" if settled is None else round(settled - after, 1),
        "MiB before": during(2, CALM_S, "mib"),
        "most MiB": round(max(look.mib for look in looks)),
        "most records that waited": round(max(look.lag for look in looks)),
        "p99 age at most, s": round(max(look.p99_ms for look in looks) / 1000, 1),
        "seconds after the storm until nothing waited": round(seen.drained_s, 1),
        "events sent": seen.sent,
        "events lost": seen.sent - seen.unified,
        "windows wrong": seen.wrong,
        "users compared": seen.compared,
        "reads in the storm": seen.reads,
    }
    note = f"calm {a.calm:g}/s, then {a.ratio:g} times the sustainable rate for {a.seconds:g} s, as far as the generator gets; results/{name}.svg"
    record(name, figures, "events, events/s, ms, MiB", note)


if __name__ == "__main__":
    main()
