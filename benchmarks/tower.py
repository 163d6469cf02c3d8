"""Day-0 quality and speed of the shipped tower: hit rate of the decayed mean on real next actions. The data are read in place."""

import os
import time
from pathlib import Path

import numpy as np

from benchmarks.common import record
from encoder.baseline import HALF_LIFE, l2
from encoder.towers import load_tower

DATA = Path(os.environ.get("CURRENTS_DATA", Path(__file__).parents[1].parent / "shared" / "data")) / "food_kitchen"
LAST = 64


def hits(vectors: np.ndarray, food: np.ndarray) -> dict[str, float]:
    """Return HR@10 of the held-out last item, ranked against every item of its platform except those in the history."""
    found: dict[str, list[bool]] = {"food": [], "kitchen": []}
    for line in (DATA / "test.txt").open():
        *history, target = (int(i) for i in line.split("\t")[1].split(","))
        history = history[-LAST:]
        weight = 0.5 ** (np.arange(len(history))[::-1] / HALF_LIFE)
        scores = vectors @ (weight @ vectors[history])
        scores[food != food[target]] = -np.inf
        scores[[i for i in history if i != target]] = -np.inf
        found["food" if food[target] else "kitchen"].append(bool((scores > scores[target]).sum() < 10))
    return {f"HR@10 {name}": round(float(np.mean(hit)), 4) for name, hit in found.items()}


def main() -> None:
    """Embed every title, then rank."""
    rows = [line.rstrip("\n").split("\t") for line in (DATA / "items.tsv").open()]
    titles, food = [r[3] for r in rows], np.array([r[1] == "food" for r in rows])
    tower, speeds = load_tower("static"), []
    for _ in range(3):
        began = time.perf_counter()
        vectors = tower.encode(titles)
        speeds.append(len(titles) / (time.perf_counter() - began))
    folder = Path(__file__).parents[1] / "encoder" / "data" / "static"
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    figures = {**hits(l2(vectors), food), "items/s": round(float(np.median(speeds))), "MB": round(size, 1)}
    record(
        "tower",
        figures,
        "hit rate, full ranking; items/s; MB",
        "food_kitchen, 937 test users, decayed mean, half-life 3 items; popularity: .0067 / .0016",
    )


if __name__ == "__main__":
    main()
