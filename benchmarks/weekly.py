"""Compares an encoder that is retrained every week with one that is not, while tastes drift. Each is tested on the following week. Plotted.

Every week more people change to another fashion (`streams/demo/journeys.py`). The retraining is that of `currents retrain`: warm start, alignment,
gate.
"""

import argparse
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from itertools import count, islice
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson

from benchmarks.common import RESULTS, record
from encoder.bundle import open_bundle
from encoder.onnx_encoder import OnnxEncoder
from encoder.recipe import GateRules, Recipe
from schemas.windows import Policy
from streams.core.settings import load
from streams.demo.world import World
from training.evaluate import rank
from training.job import Job, Retraining
from training.metrics import METRICS
from training.retrain import retrain
from training.scorers import served
from training.splits import by_time

mpl.use("svg")
from matplotlib import pyplot as plt

WEEKS, EVENTS, USERS, TURN, WEEK_MS, START_MS = 7, 14_000, 800, 0.2, 7 * 86_400_000, 1_755_000_000_000
RECIPE = Recipe(preset="xs", dims=64, max_len=32, time=False, negatives=0, batch_users=64, batch_events=1024, lr=3e-3, ema=0.99, epochs=14,
                precision="no", log_to="none", threads=1)  # fmt: skip
RULES = GateRules(cold_loss=0.2, platform_loss=0.2, min_cases=20)  # few cases a week: tighter bounds would refuse at random


class Weeks:
    """Owns the platforms' files, one per platform and week."""

    def __init__(self, folder: Path, events: int, users: int) -> None:
        self._folder, self._events, self._world, self._n = folder, events, World(7, users), 0
        self._world.turn(1)
        self.items: dict[str, list[bytes]] = {}
        for platform, _, value in self._world.items():
            self.items.setdefault(platform, []).append(value)

    def live(self, turn: float) -> None:
        """Add a week. Before it, a share `turn` of the people change to the other fashion."""
        self._world.turn(2, turn)
        rows: dict[str, list[bytes]] = {}
        for platform, value in self._week():
            rows.setdefault(platform, []).append(value)
        (self._folder / f"{self._n}.json").write_bytes(orjson.dumps({p: [v.decode() for v in values] for p, values in rows.items()}))
        self._n += 1

    def _week(self) -> Iterator[tuple[str, bytes]]:
        times = count(
            START_MS + self._n * WEEK_MS, WEEK_MS // (2 * self._events)
        )  # the world reads the clock about twice per event, so times stay within the week
        good = (e for e in self._world.events(lambda: next(times)) if e.kind != "bad" and e.value is not None)
        yield from ((e.platform, e.value or b"") for e in islice(good, self._events))

    def data(self, weeks: range, where: Path) -> Path:
        """Make a folder with these weeks for training."""
        where.mkdir()
        (where / "currents.toml").write_text((files("streams.demo") / "demo.toml").read_text())
        parts = [orjson.loads((self._folder / f"{n}.json").read_bytes()) for n in weeks if n >= 0]
        for platform, items in self.items.items():
            (where / f"{platform}.items.jsonl").write_bytes(b"\n".join(items) + b"\n")
            (where / f"{platform}.events.jsonl").write_text("".join(f"{row}\n" for part in parts for row in part.get(platform, ())))
        return where


def job(data: Path, **more: Any) -> Job:
    """Return a training job on a folder."""
    return Job(data=str(data), platforms=load(data / "currents.toml").platforms, recipe=RECIPE, **more)


def trained(folder: Path, data: Path, serving: str) -> tuple[str, str]:
    """Retrain from the serving bundle. Returns the bundle that serves afterwards, and the gate's result."""
    folder.mkdir()
    asked = Retraining(serving=serving, rules=RULES, epochs=6, lr=1e-3)
    found = retrain(job(data, retrain=asked), folder, lambda line: None)
    return (str(folder / "bundle"), "passed") if found["passed"] else (serving, found["refused"])


def tested(bundles: dict[str, str], data: Path, share: float) -> dict[str, float]:
    """Return HR@10 of encoders on every event of the newest share. The window before an event ranks the platform's whole catalogue."""
    made = job(data)
    log, _ = made.load(lambda line: None)
    cases = by_time(log, 0.05, share, successive=True).test
    return {
        name: float(METRICS["hr@10"](rank(served(OnnxEncoder(open_bundle(bundle)), log, Policy(64)), log, cases).rank).mean())
        for name, bundle in bundles.items()
    }


def plot(course: list[dict[str, Any]], path: Path) -> None:
    """Plot two lines over the weeks."""
    figure, axis = plt.subplots(figsize=(7, 3.5))
    for name in ("retrained", "frozen"):
        axis.plot([row["week"] for row in course], [row[name] for row in course], marker="o", label=name)
    axis.set_xlabel("week that is tested")
    axis.set_ylabel("HR@10")
    axis.set_ylim(bottom=0)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run one course of weeks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weeks", type=int, default=WEEKS)
    parser.add_argument("--events", type=int, default=EVENTS, help="a week")
    parser.add_argument("--users", type=int, default=USERS)
    asked = parser.parse_args()
    course: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as at:
        root = Path(at)
        weeks = Weeks(root, asked.events, asked.users)
        weeks.live(0.0)
        weeks.live(0.0)
        trained(root / "run-1", weeks.data(range(2), root / "data-1"), "baseline")
        serving = first = str(root / "run-1" / "bundle")  # both start with this encoder, whatever the gate's result
        for week in range(2, 2 + asked.weeks):
            weeks.live(TURN if week > 2 else 0.0)
            both = weeks.data(range(week - 1, week + 1), root / f"data-{week}")
            row = {"week": week, **{k: round(v, 4) for k, v in tested({"retrained": serving, "frozen": first}, both, 0.5).items()}}
            serving, gate = trained(root / f"run-{week}", both, serving)
            course.append({**row, "gate after it": gate})
            print(course[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    plot(course, RESULTS / "weekly.svg")
    start, end = course[0], course[-1]
    figures = {
        "first week": start["retrained"],
        "last week, retrained": end["retrained"],
        "last week, frozen": end["frozen"],
        "retrained against the first": round(end["retrained"] / start["retrained"] - 1, 3),
        "frozen against the first": round(end["frozen"] / start["retrained"] - 1, 3),
        "worst week, retrained": round(min(row["retrained"] for row in course) / start["retrained"] - 1, 3),
    }
    note = (
        f"the synthetic world, {asked.events:,} events a week of {asked.users:,} people, {TURN:.0%} more in another fashion every week; XS; "
        "every event of the week after is a test, HR@10 among its platform's whole catalogue; goal: within 5 % of the first; results/weekly.svg"
    )
    record("weekly", figures, "HR@10", note, course=course)


if __name__ == "__main__":
    main()
