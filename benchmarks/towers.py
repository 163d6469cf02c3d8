"""Compares the shipped item tower with MiniLM frozen, tuned on the log, and distilled, by the day-0 encoder's hit rate.

The benchmark takes about ten minutes on one core. Times are CPU times, so other load on the machine changes little. Towers and their ranks stay in
.runs/. A restarted run continues with the first missing tower, and the record has the finished towers.
"""

import json
import os
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import record
from benchmarks.research import food_kitchen_texts
from benchmarks.runs import RUNS
from encoder.recipe import TowerRecipe
from encoder.towers import STATIC, load_tower
from training.evaluate import rank, report
from training.log import EventLog
from training.metrics import difference
from training.scorers import decayed_mean
from training.splits import Split
from training.tower import build

RECIPE = TowerRecipe(threads=1, steps=40, batch=64)
"""LoRA recipe for a few minutes of one core, on .3 % of the pairs: it shows the effect of a few steps, not of complete training."""
FOLDER = RUNS / f"towers-{RECIPE.steps}x{RECIPE.batch}"
SHIPPED, FROZEN, TUNED = "static, shipped", "MiniLM, frozen", "MiniLM, LoRA"
PLANS: dict[str, tuple[str, dict[str, str]]] = {
    SHIPPED: (STATIC, {}),
    "static, whitened on the titles": ("titles", {"mode": "static"}),
    FROZEN: ("frozen", {"mode": "frozen"}),
    TUNED: ("lora", {"mode": "lora"}),
    "static, distilled from LoRA": ("distilled", {"mode": "static", "model": str(FOLDER / "lora")}),
}
"""Name -> (folder's name, differences of the recipe)."""
SLICES = {"food": "platform food", "kitchen": "platform kitchen"}
SPEED_TITLES, RUNS_OF_SPEED = 1000, 3
err = Console(stderr=True, highlight=False, width=200)


def main() -> None:
    """Make, measure and show the towers."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    log, texts, split = food_kitchen_texts()
    FOLDER.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, Any]] = {}
    for name, (folder, change) in PLANS.items():
        stored = FOLDER / f"{folder}.json"
        if not stored.exists():
            stored.write_text(json.dumps(measured(folder, RECIPE.model_copy(update=change), log, texts, split)))
        done[name] = json.loads(stored.read_text())
        told(done)


def measured(folder: str, recipe: TowerRecipe, log: EventLog, texts: list[str], split: Split) -> dict[str, Any]:
    """Make a tower unless it exists. Returns hit rates by slice, ranks of the test cases, speed, size, and CPU minutes of making it."""
    began, out, vectors = time.process_time(), FOLDER / folder, None
    if folder != STATIC and not out.exists():
        vectors = build(recipe, log, texts, split, out, True, err.print, err)
    minutes = (time.process_time() - began) / 60
    tower = load_tower(STATIC if folder == STATIC else str(out))
    data = log.with_vectors(tower.encode(texts) if vectors is None else vectors)
    found = rank(decayed_mean(), data, split.test)
    parts = report(found, data, split, split.test)
    some, speeds = [texts[i] for i in np.random.default_rng(0).integers(1, len(texts), SPEED_TITLES)], list[float]()
    for _ in range(RUNS_OF_SPEED):
        began = time.process_time()
        tower.encode(some)
        speeds.append(len(some) / (time.process_time() - began))
    where = out if folder != STATIC else RUNS.parent / "encoder" / "data" / STATIC
    return {
        "slices": {k: {"cases": parts[v]["cases"], **parts[v]["hr@10"]} for k, v in SLICES.items()},
        "items/s": round(max(speeds)),
        "MB": round(sum(f.stat().st_size for f in where.rglob("*") if f.is_file()) / 1e6, 1),
        "minutes": round(minutes, 1),
        "ranks": found.rank.tolist(),
    }


def told(done: dict[str, dict[str, Any]]) -> None:
    """Record and show the finished towers."""
    ranks = {name: np.array(d["ranks"]) for name, d in done.items()}
    rows = {name: {k: v for k, v in d.items() if k != "ranks"} for name, d in done.items()}
    for name, row in rows.items():
        row["over"] = {other: difference(ranks[name], ranks[other], "hr@10") for other in (SHIPPED, FROZEN) if other in ranks and other != name}
    figures = {n: {**{k: round(s["mean"], 4) for k, s in r["slices"].items()}, "items/s": r["items/s"], "MB": r["MB"]} for n, r in rows.items()}
    tuned = f"LoRA: {RECIPE.steps} steps of {RECIPE.batch} pairs; " if TUNED in rows else ""
    note = f"food_kitchen, {len(next(iter(ranks.values())))} test users, decayed mean of {RECIPE.dims} whitened dims; {tuned}intervals in towers.json"
    machine = f"one thread of {os.cpu_count()} shared cores; minutes are CPU minutes"
    record("towers", figures, "HR@10 by platform, full ranking; items/s; MB", note, machine=machine, seed=RECIPE.seed, towers=rows)
    cases = next(iter(rows.values()))["slices"]
    columns = (*(f"{k} ({s['cases']})" for k, s in cases.items()), f"over {SHIPPED}", f"over {FROZEN}", "items/s", "MB", "minutes")
    table = Table("tower", *columns, title="HR@10, 95 %")
    for name, r in rows.items():
        hits = [f"{s['mean']:.3f} ({s['low']:.3f}–{s['high']:.3f})" for s in r["slices"].values()]
        over = [f"{o['mean']:+.3f} ({o['low']:+.3f} to {o['high']:+.3f})" if (o := r["over"].get(k)) else "" for k in (SHIPPED, FROZEN)]
        table.add_row(name, *hits, *over, f"{r['items/s']:,}", str(r["MB"]), str(r["minutes"]))
    err.print(table)


if __name__ == "__main__":
    main()
