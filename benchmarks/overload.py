"""Batches grow with the backlog and shrink after it; at twice what a worker can take nothing collapses. Plotted."""

import asyncio
import time
from pathlib import Path

import matplotlib as mpl
import uvloop

from benchmarks.common import RESULTS, bench, kafka, load, median, record, working
from benchmarks.whole import measure

mpl.use("svg")
from matplotlib import pyplot as plt

CALM_S, STORM_S, AFTER_S, CALM = 8.0, 15.0, 45.0, 1500


async def watch(bootstrap: str, storm: float) -> list[tuple[float, float, float, float]]:
    """(seconds, batch size, events/s, p99 age ms) twice a second: calm, storm, calm."""
    rows = []
    async with bench(bootstrap) as settings, working(settings) as worker:
        value, began = worker.metrics.value, time.perf_counter()
        calm = await load(settings, CALM, CALM_S + STORM_S + AFTER_S, 20_000)
        stormy = None
        last = [0.0, 0.0, 0.0]
        while (now := time.perf_counter() - began) < CALM_S + STORM_S + AFTER_S:
            if stormy is None and now > CALM_S:
                stormy = await load(settings, storm, STORM_S, 20_000)
            await asyncio.sleep(0.5)
            at = time.perf_counter() - began
            folded, batches = value("currents_folded_total"), value("currents_batch_seconds_count")
            done, lots, took = folded - last[0], batches - last[1], at - last[2]
            rows.append((at, done / lots if lots else 0.0, done / took, worker.metrics.age.percentiles(99)[0]))
            worker.metrics.age.forget()
            last = [folded, batches, at]
        calm.terminate()
        await calm.wait()
        if stormy is not None:
            await stormy.wait()
    return rows


def plot(rows: list[tuple[float, float, float, float]], path: Path) -> None:
    """Three lines over time."""
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(8, 7))
    for axis, column, label in zip(axes, (1, 2, 3), ("events in a batch", "events/s", "p99 age, ms"), strict=True):
        axis.plot([r[0] for r in rows], [r[column] for r in rows], linewidth=1)
        axis.axvspan(CALM_S, CALM_S + STORM_S, alpha=0.15, color="tab:red")
        axis.set_ylabel(label)
    axes[2].set_xlabel("seconds; the storm is shaded")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Twice the rate that the worker catches up with, for fifteen seconds."""
    with kafka() as bootstrap:
        sustainable = median(uvloop.run(measure(bootstrap)) for _ in range(3))
        rows = uvloop.run(watch(bootstrap, 2 * sustainable))
    RESULTS.mkdir(exist_ok=True)
    plot(rows, RESULTS / "overload.svg")

    def during(begin: float, end: float, column: int) -> float:
        return median(r[column] for r in rows if begin <= r[0] < end)

    settled = next((r[0] for r in rows if r[0] > CALM_S + STORM_S and r[3] and r[3] < 1000), float("nan"))
    figures = {
        "offered": 2 * sustainable + CALM,
        "events/s in the storm": during(CALM_S + 2, CALM_S + STORM_S, 2),
        "batch before": during(2, CALM_S, 1),
        "batch in the storm": during(CALM_S + 2, CALM_S + STORM_S, 1),
        "batch at the end": during(CALM_S + STORM_S + AFTER_S - 8, 1e9, 1),
        "p99 age at the end, ms": during(CALM_S + STORM_S + AFTER_S - 8, 1e9, 3),
        "seconds after the storm until p99 < 1 s": round(settled - CALM_S - STORM_S, 1),
    }
    record("overload", figures, "events, events/s, ms", f"calm {CALM}/s, then twice the sustainable rate for {STORM_S:.0f} s; results/overload.svg")


if __name__ == "__main__":
    main()
