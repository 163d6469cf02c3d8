"""The work of the commands: train and export, evaluate and compare with the baselines, print tables."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from encoder.bundle import WEIGHTS, Bundle, BundleError, open_bundle, read_residuals
from encoder.config import PRESETS, preset
from encoder.features import UNKNOWN
from encoder.model import SequenceEncoder
from encoder.recipe import Recipe
from encoder.runtime import load_encoder
from encoder.towers import Tower, load_tower
from training import sasrec
from training.evaluate import Ranked, Score, measured, rank, report
from training.export import export
from training.finetune import train
from training.initial import fresh, residual_rows
from training.job import Job
from training.log import EventLog
from training.metrics import difference
from training.report import write_report
from training.scorers import decayed_mean, model_scores, popularity, recent_popularity, served
from training.splits import Cases, Split, elsewhere
from training.tagging import tags
from training.verdict import Verdict, judged

Say = Callable[[str], None]


def train_and_export(job: Job, out: Path, folder: Path, say: Say) -> tuple[Bundle, Verdict] | None:
    """Train, compare with what there was before, export, write the report, say the verdict. None on all processes but the first."""
    log, tower = job.load(say)
    split = job.split(log)
    counts = log.counts(split.trained(len(log.rows)))
    residual = residual_rows(counts, job.recipe)
    start = warm(open_bundle(Path(job.recipe.start)), log, split, job.recipe, residual) if job.recipe.start else None
    say(f"{len(log.rows)} events of {len(log.users)} users on {log.catalogue.size - 1} items")
    say(f"{len(split.valid)} validation and {len(split.test)} test targets")
    trained = train(log, split, job.recipe, folder, start, say)
    if os.environ.get("RANK", "0") != "0":
        return None
    trained.model.round_residuals()
    models = {"before": before(job, log), "trained": model_scores(trained.model, log, trained.residual), **baselines(log, counts)}
    found = {name: rank(score, log, split.test) for name, score in models.items()}
    results = {**compared(found, log, split, split.test), "behavior": tags(trained.model, log, trained.residual, split.test)}
    verdict = judged(found, Path(job.recipe.start).name if job.recipe.start else "untrained: the decayed mean of its newest events")
    metrics = {k: round(v["mean"], 4) for k, v in results["models"]["trained"]["all"].items() if isinstance(v, dict)}
    keys = log.catalogue.table.keys[np.flatnonzero(trained.residual)]
    bundle = export(trained.model, out, tower.space_id, job.recipe.preset, keys, metrics)
    write_report(out.with_name(out.name + ".report.html"), bundle.manifest.version, results, trained.history, job.recipe, verdict)
    for line in verdict.lines():
        say(line)
    return bundle, verdict


def exported(job: Job, out: Path, name: str, model: Path | None, int8: bool, weights: bool, say: Say) -> Bundle:
    """An untrained encoder of preset `name`, or another form of the release in `model`. Raises BundleError, DataError."""
    if int8 and job.data is None:
        raise BundleError("--int8: needs --data, a log on whose test part int8 is compared with float32")
    tower, keys, metrics = load_tower(job.tower), np.zeros(0, np.uint64), dict[str, float]()
    if model is None:
        if name not in PRESETS:
            raise BundleError(f"--preset {name}: want one of {', '.join(PRESETS)}")
        torch.manual_seed(job.recipe.seed)
        encoder = SequenceEncoder(preset(name, tower.dims, dims=min(job.recipe.dims, tower.dims), max_len=job.recipe.max_len))
    else:
        bundle = fitting(weighted(open_bundle(model)), tower)
        encoder = SequenceEncoder.from_pretrained(str(model))
        keys, metrics = read_residuals(model, encoder.config.dims)[0], bundle.manifest.metrics
        name = bundle.manifest.version.rpartition("-")[0]
    if not int8:
        return export(encoder, out, tower.space_id, name, keys, metrics, weights=weights)
    log, _ = job.load(say)
    return export(encoder, out, tower.space_id, name, keys, int8=(log, job.split(log).test), weights=weights)


def weighted(bundle: Bundle) -> Bundle:
    """Returns the bundle. Raises BundleError where it was written without its torch encoder."""
    if WEIGHTS not in bundle.manifest.files:
        raise BundleError(f"bundle {bundle.folder}: has no {WEIGHTS}, the torch encoder")
    return bundle


def fitting(bundle: Bundle, tower: Tower) -> Bundle:
    """Returns the bundle. Raises BundleError where it reads another tower's vectors."""
    if bundle.manifest.item_space_id != tower.space_id:
        raise BundleError(f"bundle {bundle.folder}: item_space_id = {bundle.manifest.item_space_id!r}, but the tower makes {tower.space_id!r}")
    return bundle


def warm(bundle: Bundle, log: EventLog, split: Split, recipe: Recipe, residual: np.ndarray) -> SequenceEncoder:
    """A new encoder with a release's weights; ID residuals go along by item key. Raises BundleError where it cannot be read."""
    old, there = stored(weighted(bundle).folder, log)
    if old.config.item_dims != log.catalogue.table.dims:
        raise BundleError(f"bundle {bundle.folder}: reads vectors of {old.config.item_dims} dims, the tower makes {log.catalogue.table.dims}")
    encoder = fresh(log, split, recipe, residual)
    state = {k: v for k, v in old.state_dict().items() if k != "residual.weight"}
    try:
        encoder.load_state_dict(state, strict=False)
    except RuntimeError:
        raise BundleError(f"bundle {bundle.folder}: is of another shape than training.preset = {recipe.preset!r}, dims = {recipe.dims}") from None
    both = np.flatnonzero((residual > 0) & (there > 0))
    with torch.no_grad():
        encoder.residual.weight[residual[both]] = old.residual.weight[there[both]]
    return encoder


def before(job: Job, log: EventLog) -> Score:
    """The encoder that training started from: a release, or the baseline."""
    if not job.recipe.start:
        return decayed_mean(job.recipe.max_len)
    model, residual = stored(Path(job.recipe.start), log)
    return model_scores(model, log, residual)


def stored(folder: Path, log: EventLog) -> tuple[SequenceEncoder, np.ndarray]:
    """A release's torch encoder, and (N,) the row of each catalogue item among its ID residuals, 0 for none."""
    model = SequenceEncoder.from_pretrained(str(folder))
    return model, rows_among(log, read_residuals(folder, model.config.dims)[0])


def rows_among(log: EventLog, keys: np.ndarray) -> np.ndarray:
    """(N,) the row of each catalogue item among ID residuals of these (m,) item keys, counted from 1; 0 for none."""
    rows = np.zeros(log.catalogue.size, np.int64)
    rows[log.catalogue.table.index(keys)] = np.arange(1, len(keys) + 1)
    rows[UNKNOWN] = 0
    return rows


def baselines(log: EventLog, counts: np.ndarray) -> dict[str, Score]:
    """What a trained encoder must beat: popularity, popularity of the last 7 days, the decayed mean."""
    return {"popularity": popularity(counts), "popularity, 7 days": recent_popularity(log), "decayed mean": decayed_mean()}


def compared(found: Mapping[str, Ranked], log: EventLog, split: Split, some: Cases) -> dict[str, Any]:
    """Every model's report, and its paired difference to the decayed mean, in all and by platform."""
    platform, base = log.catalogue.platform[log.items[some.target]], found["decayed mean"].rank

    def over(model: Ranked, code: int) -> dict[str, float]:
        return difference(model.rank[platform == code], base[platform == code], "hr@10")

    return {
        "cases": len(some),
        "policy": "all items of the target's platform are ranked; those already in the history are left out, the target stays",
        "models": {name: report(r, log, split, some) for name, r in found.items()},
        "hr@10 over the decayed mean": {name: difference(r.rank, base, "hr@10") for name, r in found.items()},
        "by platform": {name: {log.catalogue.platforms[c]: over(r, c) for c in np.unique(platform).tolist()} for name, r in found.items()},
    }


def evaluated(job: Job, bundle: str, successive: bool, say: Say, sasrec_epochs: int = 0) -> dict[str, Any]:
    """A bundle (or `baseline`) and the baselines on the test part of a log; the behavior of every event of the inputs, tagged.

    With `sasrec_epochs` a SASRec is trained on the same split, for at most so many epochs, and is one more baseline.
    """
    log, tower = job.load(say)
    split = job.split(log, successive)
    models = baselines(log, log.counts(split.trained(len(log.rows))))
    if sasrec_epochs:
        torch.set_num_threads(job.recipe.threads or torch.get_num_threads())
        bf16 = job.recipe.precision == "bf16"
        trained = sasrec.train(log, split, job.recipe.max_len, sasrec_epochs, seed=job.recipe.seed, bf16=bf16, note=say)
        models["SASRec, full softmax"] = sasrec.scores(trained.model)
    extra: dict[str, Any] = {}
    if bundle != "baseline":
        opened = fitting(open_bundle(bundle), tower)
        version = opened.manifest.version
        if WEIGHTS in opened.manifest.files:
            model, residual = stored(opened.folder, log)
            models = {version: model_scores(model, log, residual), **models}
            extra["behavior"] = tags(model, log, residual, split.test)
        else:  # the behavior task has no head in the graph
            models = {version: served(load_encoder(bundle, tower.space_id, tower.dims), log), **models}
    found = {name: rank(score, log, split.test) for name, score in models.items()}
    results = compared(found, log, split, split.test)
    other, hidden = elsewhere(log, split.test)
    if len(hidden):
        platform = log.catalogue.platform
        for name, score in models.items():
            results["models"][name]["platform held out"] = measured(rank(score, other, hidden), platform, platform[other.items[hidden.target]])
    return {**results, **extra}


def show(result: Mapping[str, Any]) -> None:
    """Tables on the terminal: models by slice, then the behavior tags."""
    console = Console()
    for part in next(iter(result["models"].values())):
        table = Table(title=f"{part}, {next(iter(result['models'].values()))[part]['cases']} cases", title_justify="left")
        for column in ("model", "HR@10", "95 %", "NDCG@10", "Recall@50", "MRR", "coverage@10", "concentration@10"):
            table.add_column(column)
        for name, slices in result["models"].items():
            r = slices[part]
            hr = r["hr@10"]
            cells = [r["ndcg@10"]["mean"], r["recall@50"]["mean"], r["mrr"]["mean"], r["coverage@10"], r["concentration@10"]]
            table.add_row(name, f"{hr['mean']:.4f}", f"{hr['low']:.4f}–{hr['high']:.4f}", *(f"{c:.4f}" for c in cells))
        console.print(table)
    for platform, rows in result.get("behavior", {}).items():
        table = Table(title=f"behavior of each event, its own hidden: {platform}", title_justify="left")
        for column in ("behavior", "precision", "recall", "f1", "events"):
            table.add_column(column)
        for name, r in rows.items():
            table.add_row(name, *(f"{r[k]:.3f}" for k in ("precision", "recall", "f1-score")), str(int(r["support"])))
        console.print(table)
