"""Compares RecTools' SASRec and HSTU with Currents' SASRec: same split, early stopping, ranking and metrics. CPU only, few epochs.

`make bench ONLY=peers`, or `python -m benchmarks.peers ml1m --models SASRecModel` for a part. Models that are not run keep their recorded figures, as
do runs with another number of epochs.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, command, record
from benchmarks.peers.environment import ROOT, python
from benchmarks.peers.exchange import read_scores, write_split
from benchmarks.research import food_kitchen, ml1m
from training import sasrec
from training.evaluate import Score, rank, report
from training.log import EventLog
from training.scorers import decayed_mean, popularity
from training.splits import VALIDATION_CASES, Split, leave_one_out

RECTOOLS = ("SASRecModel", "HSTUModel")
OURS = "SASRec"
FLOORS = ("popularity", "decayed mean")
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
"""Requirements of RecTools: a 3 GB download."""


@dataclass(frozen=True)
class Plan:
    """Training parameters of all models of a data set: those of SASRec+, but with batches and epochs for a few minutes of training."""

    max_len: int
    batch_users: int
    epochs: int
    dims: int = 64
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.1
    lr: float = 1e-3
    patience: int = 10
    seed: int = 0
    threads: int = 1


PLANS = {"ml1m": Plan(max_len=100, batch_users=32, epochs=12), "food_kitchen": Plan(max_len=50, batch_users=128, epochs=4)}


def research(name: str) -> tuple[EventLog, Split]:
    """Return a data set's log and split, from benchmarks/research.py."""
    if name == "food_kitchen":
        return food_kitchen()
    log = ml1m()
    return log, leave_one_out(log)


def ours(log: EventLog, split: Split, plan: Plan) -> tuple[Score, dict[str, Any]]:
    """Train Currents' SASRec. Returns its score and figures."""
    torch.set_num_threads(plan.threads)
    wall, cpu = time.perf_counter(), time.process_time()
    settings = {k: v for k, v in asdict(plan).items() if k != "threads"}
    trained = sasrec.train(log, split, **settings, note=say)
    spent = {"cpu_s": round(time.process_time() - cpu), "wall_s": round(time.perf_counter() - wall)}
    return sasrec.scores(trained.model), {**spent, "history": trained.history}


def theirs(log: EventLog, split: Split, plan: Plan, name: str) -> tuple[Score, dict[str, Any]]:
    """Train a model of RecTools in its own environment. Returns its score and figures."""
    with tempfile.TemporaryDirectory(prefix="currents-peers-") as at:
        folder = Path(at)
        write_split(log, split, split.valid.at_most(VALIDATION_CASES, plan.seed), folder / "split.npz")
        (folder / "plan.json").write_text(json.dumps(asdict(plan)))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(plan.threads), "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(
            [python("rectools", REQUIREMENTS), "-m", "benchmarks.peers.rectools_models", folder, name], check=True, env=environment, cwd=ROOT
        )
        told = json.loads((folder / f"{name}.json").read_text())
        if not told["checks"]["passed"]:
            say(f"RecTools {name}: its checks failed, so the figures are not to be trusted: {told['checks']}")
        return read_scores(folder / f"{name}.npz", split.test), told


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def run(name: str, plan: Plan, models: list[str], keep: Callable[[dict[str, Any]], None]) -> None:
    """Train and rank all models of one data set, one after the other. Records each model as soon as it is ranked."""
    log, split = research(name)
    for model in models:
        if model in FLOORS:
            counts = log.counts(split.trained(len(log.rows)))
            score, told = popularity(counts) if model == "popularity" else decayed_mean(plan.max_len), dict[str, Any]()
        else:
            score, told = ours(log, split, plan) if model == OURS else theirs(log, split, plan, model)
            told |= {"epochs": len(told["history"]), "plan": asdict(plan)}
        slices = report(rank(score, log, split.test), log, split, split.test)
        found = {part: {k: r[k] for k in ("cases", "hr@10", "ndcg@10")} for part, r in slices.items() if part == "all" or part.startswith("platform")}
        keep({"data": name, "model": f"RecTools {model}" if model in RECTOOLS else model, **found, **told})


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a model's row in the README."""
    out = {"HR@10": round(row["all"]["hr@10"]["mean"], 4), "NDCG@10": round(row["all"]["ndcg@10"]["mean"], 4)}
    return out | ({"CPU minutes": round(row["cpu_s"] / 60, 1)} if "cpu_s" in row else {})


def main() -> None:
    """Run the requested models, and add their figures to the recorded ones."""
    known = [*FLOORS, OURS, *RECTOOLS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help=f"of {', '.join(PLANS)}; all without one")
    parser.add_argument("--models", nargs="+", choices=known, default=known)
    parser.add_argument("--epochs", type=int, help="instead of the plan's")
    asked = parser.parse_args()
    if strange := [d for d in asked.data if d not in PLANS]:
        parser.error(f"{strange[0]}: no such data; there are {', '.join(PLANS)}")

    def keep(row: dict[str, Any]) -> None:
        """Add a row to the results. Reads the file each time, because two data sets may run at once."""
        path = RESULTS / "peers.json"
        stored = json.loads(path.read_text())["runs"] if path.exists() else []
        stored.append({**row, "date": datetime.date.today().isoformat(), "command": command("peers")})
        rows = {(r["data"], r["model"], r.get("epochs", 0)): r for r in stored}
        figures = {f"{data} {model}" + (f", {n} epochs" if n else ""): shown(r) for (data, model, n), r in sorted(rows.items())}
        note = "full ranking; few epochs on a CPU, not trained to the end; ml1m leave-one-out, food_kitchen's 937 test users; intervals in peers.json"
        machine = f"{os.cpu_count()} cores, shared with other work; one thread a model"
        of_all: dict[str, Any] = {"machine": machine, "command": "make bench ONLY=peers"}  # each run has its own command
        record("peers", figures, "hit rate, NDCG", note, **of_all, runs=list(rows.values()))

    for name in asked.data or PLANS:
        run(name, replace(PLANS[name], epochs=asked.epochs or PLANS[name].epochs), asked.models, keep)


if __name__ == "__main__":
    main()
