"""What an item tower of one's own is worth: the shipped one beside MiniLM frozen, tuned on the log, and distilled, by the day-0 encoder's hit rate.

One core does it in about half an hour; times are the core's, so that a busy machine changes little.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import record
from benchmarks.research import food_kitchen_texts
from encoder.recipe import TowerRecipe
from encoder.towers import STATIC, load_tower
from training.evaluate import rank, report
from training.metrics import difference
from training.scorers import decayed_mean
from training.tower import build

SHIPPED = Path(__file__).parents[1] / "encoder" / "data" / "static"
SPEED_TITLES, RUNS = 1000, 3
RECIPE = TowerRecipe(threads=1)
SLICES = {"food": "platform food", "kitchen": "platform kitchen", "warm": "warm", "item-cold": "item-cold"}


def main() -> None:
    """Make, measure, show."""
    torch.set_num_threads(1)
    log, texts, split = food_kitchen_texts()
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    ranks: dict[str, np.ndarray] = {}
    details: dict[str, dict[str, Any]] = {}

    def measure(name: str, folder: Path, minutes: float, vectors: np.ndarray | None = None) -> None:
        tower = load_tower(STATIC if folder == SHIPPED else str(folder))
        data = log.with_vectors(tower.encode(texts) if vectors is None else vectors)
        found = rank(decayed_mean(), data, split.test)
        ranks[name], parts = found.rank, report(found, data, split, split.test)
        some = [texts[i] for i in np.random.default_rng(0).integers(1, len(texts), SPEED_TITLES)]
        tower.encode(some[:64])
        speeds = []
        for _ in range(RUNS):
            began = time.process_time()
            tower.encode(some)
            speeds.append(len(some) / (time.process_time() - began))
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
        slices = {k: {"cases": parts[v]["cases"], **parts[v]["hr@10"]} for k, v in SLICES.items() if v in parts}
        details[name] = {"slices": slices, "items/s": round(max(speeds)), "MB": round(size, 1), "minutes": round(minutes, 1)}
        say(f"{name}: {details[name]}")

    measure("static, shipped", SHIPPED, 0)
    with tempfile.TemporaryDirectory(prefix="currents-towers-") as made:
        tuned = Path(made) / "lora"
        for name, folder, recipe in (
            ("static, whitened on the titles", "static", {"mode": "static"}),
            ("MiniLM, frozen", "frozen", {"mode": "frozen"}),
            ("MiniLM, LoRA", tuned.name, {"mode": "lora"}),
            ("static, distilled from LoRA", "distilled", {"mode": "static", "model": str(tuned)}),
        ):
            began, out = time.process_time(), Path(made) / folder
            vectors = build(RECIPE.model_copy(update=recipe), log, texts, split, out, True, say, Console(file=sys.stderr))
            measure(name, out, (time.process_time() - began) / 60, vectors)
    for name, row in details.items():
        row["over shipped"] = difference(ranks[name], ranks["static, shipped"], "hr@10")
    show(details)
    figures = {n: {**{k: round(s["mean"], 4) for k, s in d["slices"].items()}, "items/s": d["items/s"], "MB": d["MB"]} for n, d in details.items()}
    note = f"food_kitchen, 937 test users, decayed mean; items/s of one core; LoRA: {RECIPE.steps} steps of {RECIPE.batch} pairs"
    record("towers", figures, "HR@10 by slice, full ranking; items/s; MB", note, details=details)


def show(details: dict[str, dict[str, Any]]) -> None:
    """A line a tower."""
    cases = next(iter(details.values()))["slices"]
    table = Table("tower", *(f"{k} ({s['cases']})" for k, s in cases.items()), "over shipped, all", "items/s", "MB", "minutes", title="HR@10, 95 %")
    for name, d in details.items():
        hits = [f"{s['mean']:.3f} ({s['low']:.3f}–{s['high']:.3f})" for s in d["slices"].values()]
        over = d["over shipped"]
        more = f"{over['mean']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f})"
        table.add_row(name, *hits, more, f"{d['items/s']:,}", str(d["MB"]), str(d["minutes"]))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
