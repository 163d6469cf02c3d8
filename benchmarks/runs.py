"""Training runs of the encoder's benchmarks, and the recording of their figures in results/encoder.json.

Runs keep their checkpoints in .runs/ and continue from them. A finished run is read instead of trained again.
"""

import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.common import RESULTS
from encoder.recipe import Recipe
from training.evaluate import Ranked, rank
from training.finetune import Trained, train
from training.log import EventLog
from training.metrics import METRICS, interval
from training.scorers import model_scores
from training.splits import Split

RUNS = Path(__file__).parents[1] / ".runs"
FILE = RESULTS / "encoder.json"
SEED = 0
err = Console(stderr=True, highlight=False, soft_wrap=True)

ORDERS: dict[str, Any] = {  # switches off parts for data that both logs lack: times, behaviors, values
    "time": False, "mask": 0.0, "weight_behavior": 0.0, "weight_class": 0.0, "weight_value": 0.0, "residual_min_count": 1,
    "log_to": "none", "threads": 1, "checkpoint_steps": 10_000, "seed": SEED,
}  # fmt: skip
ML1M = Recipe(
    **ORDERS, preset="s", max_len=200, negatives=0, residual_dropout=0.0, drop_event=0.0, unknown_platform=0.0, batch_events=8192, epochs=40
)
FOOD = Recipe(
    **ORDERS, preset="s", max_len=50, epochs=6, batch_events=512, negatives=1024, residual_dropout=0.1, residual_decay=1.0,
    drop_platform=0.0, unknown_platform=0.0,
)  # fmt: skip
BRIEF = FOOD.model_copy(update={"epochs": 3, "batch_events": 1024, "ema": 0.99})
"""Recipe for comparisons, with a third of the steps."""


@dataclass(frozen=True)
class Run:
    """Owns a trained encoder and its ranks of the test cases."""

    trained: Trained
    found: Ranked
    seconds: float


def run(name: str, log: EventLog, split: Split, recipe: Recipe) -> Run:
    """Train a run, or read a finished one, and rank its test cases."""
    folder = RUNS / name
    began = time.perf_counter()
    trained = train(log, split, recipe, folder, note=lambda text: err.print(f"{name}: {text}"))
    spent = folder / "seconds.json"
    before = json.loads(spent.read_text()) if spent.exists() else 0.0
    seconds = before + (time.perf_counter() - began if trained.losses else 0.0)
    spent.write_text(json.dumps(seconds))
    return Run(trained, rank(model_scores(trained.model, log, trained.residual), log, split.test), seconds)


def figure(values: np.ndarray) -> dict[str, float]:
    """(n,) values of cases -> mean and its 95 % bootstrap interval."""
    low, high = interval(values, SEED)
    return {"value": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def by_platform(log: EventLog, split: Split, ranks: np.ndarray, metric: str) -> dict[str, dict[str, float]]:
    """Return platform -> a metric of the test cases."""
    platform = log.catalogue.platform[log.items[split.test.target]]
    return {name: figure(METRICS[metric](ranks[platform == code]).astype(float)) for code, name in log.catalogue.platforms.items()}


def note(question: str, about: str, **figures: Any) -> None:
    """Add figures to the results, each with command, seed and date, and print them as the last line."""
    rows = json.loads(FILE.read_text()) if FILE.exists() else {}
    common = {"command": f"python -m benchmarks.encoder {question}", "seed": SEED, "date": datetime.date.today().isoformat(), "about": about}
    for name, value in figures.items():
        rows[name] = {**(value if isinstance(value, dict) else {"value": value}), **common}
    FILE.write_text(json.dumps(rounded(rows), indent=1) + "\n")
    print(json.dumps(rounded(figures)), flush=True)


def rounded(value: Any) -> Any:
    """Round floats to four digits; no interval here is narrower."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value
