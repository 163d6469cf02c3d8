"""`currents tower`: an item tower of a Hugging Face text model, frozen, fine-tuned or distilled; and what it is worth on the same log."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from encoder.recipe import TowerRecipe
from encoder.text import TextModel
from encoder.towers import STATIC, TowerError, load_tower, text_model, whitened
from training.distill import distil
from training.evaluate import rank, report
from training.job import Job
from training.log import EventLog
from training.pairs import pairs
from training.scorers import decayed_mean
from training.splits import Split
from training.whiten import check, embed, fit, fit_on, source_of, write

MADE_BY = "currents tower"
Say = Callable[[str], None]


def make(job: Job, out: Path, measured: bool, say: Say, console: Console | None) -> dict[str, Any]:
    """Write the tower; hit rates of the decayed mean on the test part, by tower. Raises DataError, TowerError."""
    if out.exists():
        raise TowerError(f"{out}: exists; choose another folder")
    recipe = job.tower_recipe
    log, texts = job.texts(say)
    split = job.split(log)
    told = sum(bool(t.strip()) for t in texts)
    check(told, recipe.dims)
    say(f"{len(log.rows)} events of {len(log.users)} users on {log.catalogue.size - 1} items, {told} of them with a text")
    began = time.perf_counter()
    vectors = build(recipe, log, texts, split, out, measured, say, console)
    minutes = round((time.perf_counter() - began) / 60, 1)
    made = load_tower(str(out))
    found: dict[str, Any] = {"tower": str(out), "space_id": made.space_id, "dims": made.dims, "minutes": minutes}
    if measured:
        towers = {f"{STATIC}, shipped": load_tower(STATIC).encode(texts), str(out): made.encode(texts) if vectors is None else vectors}
        found["models"] = {name: worth(log, v, split) for name, v in towers.items()}
    return found


def build(
    recipe: TowerRecipe, log: EventLog, texts: Sequence[str], split: Split, out: Path, all_texts: bool, say: Say, console: Console | None
) -> np.ndarray | None:
    """Write the tower's folder; with `all_texts` also the (N, dims) vectors of the catalogue where they came about."""
    if recipe.mode == "static":
        told = [t for t in texts if t.strip()]
        if console is None:
            distil(told, recipe.dims, out, recipe.model, MADE_BY)
        else:
            with console.status("distilling"):
                distil(told, recipe.dims, out, recipe.model, MADE_BY)
        return None
    data = pairs(log, split, recipe.ahead, texts) if recipe.mode != "frozen" else None  # before anything slow
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = text_model(source_of(recipe.model), recipe.max_tokens, recipe.precision == "bf16", device)
    if data is not None:
        from training.tune import tune

        tune(model, texts, data, recipe, say, console)
    return finish(model, texts, recipe, out, all_texts, console)


def finish(model: TextModel, texts: Sequence[str], recipe: TowerRecipe, out: Path, all_texts: bool, console: Console | None) -> np.ndarray | None:
    """Fit the whitening of a model on the catalogue, write the tower; with `all_texts` the (N, dims) vectors."""
    if not all_texts:
        write(model, fit_on(model, texts, recipe.dims, recipe.seed, console), out, MADE_BY)
        return None
    raw = embed(model, texts, console)
    fitted = fit(raw[[bool(t.strip()) for t in texts]], recipe.dims)
    write(model, fitted, out, MADE_BY)
    return whitened(raw, *fitted, texts)


def worth(log: EventLog, vectors: np.ndarray, split: Split) -> dict[str, Any]:
    """Slice -> metrics of the decayed mean of (N, D) item vectors on the test part."""
    data = log.with_vectors(vectors)
    return report(rank(decayed_mean(), data, split.test), data, split, split.test)


def show(found: dict[str, Any], console: Console) -> None:
    """Hit rates by tower and slice."""
    for part in found["models"][f"{STATIC}, shipped"]:
        cases = found["models"][f"{STATIC}, shipped"][part]["cases"]
        table = Table("tower", "HR@10", "95 %", "NDCG@10", "Recall@50", title=f"decayed mean, {part}, {cases} cases", title_justify="left")
        for name, slices in found["models"].items():
            hr, more = slices[part]["hr@10"], [slices[part][m]["mean"] for m in ("ndcg@10", "recall@50")]
            table.add_row(name, f"{hr['mean']:.4f}", f"{hr['low']:.4f}–{hr['high']:.4f}", *(f"{m:.4f}" for m in more))
        console.print(table)
