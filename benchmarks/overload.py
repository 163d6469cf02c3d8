"""Batches grow with the backlog and shrink after it; at a multiple of what a worker can take nothing collapses. Plotted.

python -m benchmarks.overload --ratio 10 --seconds 300 --after 600
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import psutil
import uvloop
from aiokafka import TopicPartition

from benchmarks.common import PARTITIONS, RESULTS, bench, kafka, load, median, record, working
from benchmarks.whole import measure
from streams.restore import reader
from streams.settings import Settings

mpl.use("svg")
from matplotlib import pyplot as plt

CALM_S, STORM_S, AFTER_S, CALM, RATIO = 8.0, 15.0, 45.0, 1500, 2.0


class Look(NamedTuple):
    """One look at the worker; there are two a second."""

    at_s: float
    batch: float
    """Events in a batch."""
    per_s: float
    """Events a second."""
    p99_ms: float
    """Age of profiles."""
    mib: float
    """Resident memory."""


async def watch(bootstrap: str, storm: float, storm_s: float, after_s: float) -> tuple[list[Look], int]:
    """Calm, storm, calm; and how many events were sent in all."""
    looks, process = [], psutil.Process()
    async with bench(bootstrap) as settings, working(settings) as worker:
        value, began, whole = worker.metrics.value, time.perf_counter(), CALM_S + storm_s + after_s
        calm = await load(settings, CALM, whole, 20_000)
        stormy = None
        last = [0.0, 0.0, 0.0]
        while (now := time.perf_counter() - began) < whole:
            if stormy is None and now > CALM_S:
                stormy = await load(settings, storm, storm_s, 20_000)
            await asyncio.sleep(0.5)
            if worker.failed.done():
                await worker.failed
            at = time.perf_counter() - began
            folded, batches = value("currents_folded_total"), value("currents_batch_seconds_count")
            done, lots, took = folded - last[0], batches - last[1], at - last[2]
            mib = process.memory_info().rss / 2**20
            looks.append(Look(at, done / lots if lots else 0.0, done / took, worker.metrics.age.percentiles(99)[0], mib))
            worker.metrics.age.forget()
            last = [folded, batches, at]
        calm.terminate()
        await calm.wait()
        if stormy is not None:
            await stormy.wait()
        return looks, await sent(settings)


async def sent(settings: Settings) -> int:
    """Records of the platform's topic: what the generators really got through."""
    consumer = reader(settings.kafka)
    await consumer.start()
    try:
        return sum((await consumer.end_offsets([TopicPartition(settings.platforms[0].topic, p) for p in range(PARTITIONS)])).values())
    finally:
        await consumer.stop()


def plot(looks: list[Look], storm_s: float, path: Path) -> None:
    """Four lines over time."""
    figure, axes = plt.subplots(4, 1, sharex=True, figsize=(8, 9))
    shown = (("batch", "events in a batch"), ("per_s", "events/s"), ("p99_ms", "p99 age, ms"), ("mib", "resident, MiB"))
    for axis, (field, label) in zip(axes, shown, strict=True):
        axis.plot([look.at_s for look in looks], [getattr(look, field) for look in looks], linewidth=1)
        axis.axvspan(CALM_S, CALM_S + storm_s, alpha=0.15, color="tab:red")
        axis.set_ylabel(label)
    axes[-1].set_xlabel("seconds; the storm is shaded")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """A multiple of the rate that the worker catches up with, for a while."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ratio", type=float, default=RATIO, help="times the sustainable rate")
    parser.add_argument("--seconds", type=float, default=STORM_S, help="of the storm")
    parser.add_argument("--after", type=float, default=AFTER_S, help="seconds that are watched after it")
    a = parser.parse_args()
    usual = (a.ratio, a.seconds, a.after) == (RATIO, STORM_S, AFTER_S)
    name = "overload" if usual else f"overload-{a.ratio:g}x-{a.seconds:g}s"
    with kafka() as bootstrap:
        sustainable = median(uvloop.run(measure(bootstrap)) for _ in range(3))
        looks, total = uvloop.run(watch(bootstrap, a.ratio * sustainable, a.seconds, a.after))
    RESULTS.mkdir(exist_ok=True)
    plot(looks, a.seconds, RESULTS / f"{name}.svg")
    storm, after = (CALM_S + 2, CALM_S + a.seconds), CALM_S + a.seconds

    def during(begin: float, end: float, field: str) -> float:
        return median(getattr(look, field) for look in looks if begin <= look.at_s < end)

    settled = next((look.at_s for look in looks if look.at_s > after and 0 < look.p99_ms < 1000), None)
    offered = (total - CALM * (CALM_S + a.seconds + a.after)) / a.seconds + CALM
    figures = {
        "wanted": round(a.ratio * sustainable) + CALM,
        "offered": round(offered),
        "events/s in the storm": during(*storm, "per_s"),
        "batch before": during(2, CALM_S, "batch"),
        "batch in the storm": during(*storm, "batch"),
        "batch at the end": during(after + a.after - 8, 1e9, "batch"),
        "p99 age at the end, ms": during(after + a.after - 8, 1e9, "p99_ms"),
        "seconds after the storm until p99 < 1 s": "not within the run" if settled is None else round(settled - after, 1),
        "MiB before": during(2, CALM_S, "mib"),
        "most MiB": round(max(look.mib for look in looks)),
    }
    note = f"calm {CALM}/s, then {a.ratio:g} times the sustainable rate for {a.seconds:g} s, as far as the generator gets; results/{name}.svg"
    other = {} if usual else {"command": f"python -m benchmarks.overload --ratio {a.ratio:g} --seconds {a.seconds:g} --after {a.after:g}"}
    record(name, figures, "events, events/s, ms, MiB", note, **other)


if __name__ == "__main__":
    main()
