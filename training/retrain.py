"""From a frozen slice of the log to a bundle that the gate has judged: steps, each with its figures in the run's folder, resumable.

1 examples   are there enough, of every platform
2 train      from the serving release's weights where they can be read, else anew; <run>/train has the checkpoints, <run>/trained the encoder
3 align      into the serving space, in <run>/aligned; may readers mix vectors of both
4 bundle     <run>/bundle: what is judged is what would be served
5 evaluate   beside the serving release, both as a worker runs them, on the newest part of the slice
6 gate       the rules
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encoder.base import Encoder
from encoder.bundle import MANIFEST, ONNX, WEIGHTS, BundleError, open_bundle, read_residuals
from encoder.features import Features
from encoder.model import SequenceEncoder
from encoder.onnx_encoder import CHUNK, OnnxEncoder
from encoder.runtime import load_encoder
from encoder.towers import Tower
from schemas.runs import Steps
from training.align import Mixing, compatible, fit, rotated
from training.compress import pruned
from training.evaluate import Score, beside, rank
from training.export import export, parity, to_onnx
from training.finetune import train
from training.gate import judge, refusal
from training.initial import residual_rows
from training.job import Job, Retraining
from training.log import EventLog
from training.metrics import METRICS
from training.run import rows_among, stored, warm
from training.scorers import mixed, model_users, projected, remembered, seen, served, served_items, served_users
from training.splits import DataError, Split

Say = Callable[[str], None]
MOVED = 1e-4  # most that turning may change any score
TIMED = 7  # runs of the timing: the least counts


class Retrain:
    """One run. Raises DataError for a slice that nothing can come of; the run is over then."""

    def __init__(self, job: Job, steps: Steps, say: Say) -> None:
        if job.retrain is None:
            raise DataError("retrain: is missing in the job")
        self._job, self._steps, self._say = job, steps, say
        self._asked: Retraining = job.retrain
        self._recipe = job.recipe.model_copy(update={"split": "time", "start": ""})

    def run(self) -> dict[str, Any]:
        """All steps; the gate's findings."""
        works = (self._examples, self._train, self._align, self._bundle, self._evaluate, self._gate)
        for work in works:
            name = work.__name__.removeprefix("_")
            if self._steps.done(name) is None:
                self._say(f"{name} …")
            try:
                found = self._steps.step(name, work)
            except (DataError, BundleError) as error:  # it would end the same way again
                self._steps.refuse(str(error))
                raise
        if not found["passed"]:
            self._steps.refuse(f"gate: {found['refused']}")
        return found

    @cached_property
    def _data(self) -> tuple[EventLog, Tower, Split]:
        log, tower = self._job.load(self._say)
        split = self._job.model_copy(update={"recipe": self._recipe}).split(log, successive=True)
        return log, tower, replace(split, test=split.test.at_most(self._asked.rules.max_cases, self._recipe.seed))

    @cached_property
    def _serving(self) -> Encoder:
        _, tower, _ = self._data
        return load_encoder(self._asked.serving, tower.space_id, tower.dims, device="cpu")

    def _examples(self) -> dict[str, Any]:
        log, _, split = self._data
        self._say(f"beside {self._serving.version}")  # what cannot be loaded is told before the work, not after it
        if len(log.rows) < self._asked.min_events:
            raise DataError(f"too few events: {len(log.rows)} in the slice; want at least {self._asked.min_events} (retrain.min_events)")
        at, platforms, fewest = log.rows["ts_ms"], dict[str, dict[str, int]](), self._asked.rules.min_cases
        for code, name in log.catalogue.platforms.items():
            of = log.rows["platform"] == code
            n = int(of[split.test.target].sum())
            if n < fewest:
                raise DataError(f"platform {name}: {n} test cases in the slice's newest part; want at least {fewest} (gate.min_cases)")
            platforms[name] = {"events": int(of.sum()), "valid": int(of[split.valid.target].sum()), "test": n}
        counts = {"events": len(at), "users": len(log.users), "items": log.catalogue.size - 1, "trained": int(split.trained(len(at)).sum())}
        cases = {"valid": len(split.valid), "test": len(split.test)}
        return {**counts, **cases, "oldest_ms": int(at.min()), "newest_ms": int(at.max()), "platforms": platforms}

    def _train(self) -> dict[str, Any]:
        log, _, split = self._data
        if self._asked.compress == "int8":
            return self._as_it_is()
        counts = log.counts(split.trained(len(log.rows)))
        start, residual, why = self._warm(counts)
        if self._asked.compress:
            if start is None:
                raise DataError(f"compress: {why}: there is nothing to prune")
            start, why = pruned(start, self._asked.prune), f"{why}, pruned"
        fine = {"lr": self._asked.lr, "epochs": self._asked.epochs} if start is not None else {}
        recipe = self._recipe.model_copy(update=fine)
        trained = train(log, split, recipe, self._steps.folder / "train", start, self._say, residual)
        trained.model.round_residuals()
        trained.model.save_pretrained(self._steps.folder / "trained")
        np.save(self._steps.folder / "keys.npy", log.catalogue.table.keys[np.flatnonzero(trained.residual)])
        return {"start": why, "lr": recipe.lr, "residuals": int(residual.max(initial=0)), "history": trained.history}

    def _as_it_is(self) -> dict[str, Any]:
        """The serving release's own weights: what changes is how they are stored."""
        if self._asked.serving == "baseline" or WEIGHTS not in (bundle := open_bundle(self._asked.serving)).manifest.files:
            raise DataError(f"compress: {self._asked.serving} has no {WEIGHTS}: it cannot be made anew in int8")
        SequenceEncoder.from_pretrained(str(bundle.folder)).save_pretrained(self._steps.folder / "trained")
        keys, _ = read_residuals(bundle.folder, bundle.manifest.dims)
        np.save(self._steps.folder / "keys.npy", keys)
        return {"start": bundle.manifest.version, "lr": 0.0, "residuals": len(keys), "history": []}

    def _warm(self, counts: np.ndarray) -> tuple[SequenceEncoder | None, np.ndarray, str]:
        """The serving release's encoder to go on from, or None; rows of the residuals; in words."""
        log, _, split = self._data
        if self._asked.serving == "baseline":
            return None, residual_rows(counts, self._recipe), "untrained: the baseline serves"
        bundle = open_bundle(self._asked.serving)
        if WEIGHTS not in bundle.manifest.files:
            why = f"untrained: {bundle.manifest.version} has no {WEIGHTS}"
            return None, residual_rows(counts, self._recipe), why
        try:
            residual = residual_rows(counts, self._recipe, stored(bundle.folder, log)[1])
            return warm(bundle, log, split, self._recipe, residual), residual, bundle.manifest.version
        except BundleError as error:  # another shape is asked for
            return None, residual_rows(counts, self._recipe), f"untrained: {error}"

    def _model(self, name: str) -> tuple[SequenceEncoder, np.ndarray, np.ndarray]:
        """A stored encoder, the keys of its residuals (m,), and each catalogue item's row among them (N,)."""
        log, _, _ = self._data
        model, keys = SequenceEncoder.from_pretrained(str(self._steps.folder / name)).eval(), np.load(self._steps.folder / "keys.npy")
        return model, keys, rows_among(log, keys)

    def _align(self) -> dict[str, Any]:
        log, _, split = self._data
        rules, policy = self._asked.rules, self._job.window
        model, _, residual = self._model("trained")
        old, new = served_items(self._serving, log), projected(model, log, residual)
        anchors = np.argsort(-log.counts(np.ones(len(log.rows), bool)), kind="stable")
        anchors = anchors[log.catalogue.table.vectors[anchors].any(1)][: rules.anchors]
        found = fit(np.asarray(new)[anchors], old[anchors])
        mixing, moved, turned = None, 0.0, model
        if found is not None:
            turned = rotated(model, found.rotation)
            items, some = projected(turned, log, residual), split.test
            ours, theirs = (remembered(u, log, some) for u in (model_users(turned, items, policy), served_users(self._serving, policy)))
            few = some.at_most(256, 0)
            moved = float(np.abs(mixed(ours, np.asarray(items))(log, few) - mixed(model_users(model, new, policy), np.asarray(new))(log, few)).max())
            if not moved <= MOVED:
                raise BundleError(f"align: turning moved a score by {moved:.2g}, want at most {MOVED}")
            mixing = Mixing(*(self._metric(s) for s in (mixed(theirs, old), mixed(ours, old), mixed(theirs, np.asarray(items)))))
        same, why = compatible(found, mixing, rules.space_cosine, rules.space_loss)
        turned.save_pretrained(self._steps.folder / "aligned")
        figures = {"cosine": found.cosine, "cosine_before": found.cosine_before, "anchors": found.anchors} if found else {}
        mixes = {**asdict(mixing), "loss": mixing.loss} if mixing else {}
        return {"space_id": self._serving.space_id if same else "", "same_space": same, "why": why, **figures, "mixing": mixes, "scores_moved": moved}

    @property
    def _name(self) -> str:
        return "-".join(filter(None, (self._recipe.preset, self._asked.compress)))

    def _metric(self, score: Score) -> float:
        log, _, split = self._data
        return float(METRICS[self._asked.rules.metric](rank(score, log, split.test).rank).mean())

    def _bundle(self) -> dict[str, Any]:
        folder = self._steps.folder / "bundle"
        _, tower, _ = self._data
        align, training = self._steps.done("align") or {}, self._steps.done("train") or {}
        try:
            bundle = open_bundle(folder)  # it was written, and then the process ended
        except BundleError:
            shutil.rmtree(folder, ignore_errors=True)
            model, keys, _ = self._model("aligned")
            history: list[dict[str, float]] = training["history"]
            best = max(history, key=lambda row: row["valid_ndcg@10"], default={})
            metrics = {k: round(v, 4) for k, v in best.items() if k.startswith("valid_")}
            log, _, split = self._data
            int8 = (log, split.test) if self._asked.compress == "int8" else None
            bundle = export(model, folder, tower.space_id, self._name, keys, metrics, int8, space_id=align["space_id"])
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        return {"version": bundle.manifest.version, "space_id": bundle.manifest.space_id, "digest": digest, "size_mb": megabytes(folder)}

    def _evaluate(self) -> dict[str, Any]:
        log, _, split = self._data
        folder, metric = self._steps.folder / "bundle", self._asked.rules.metric
        candidate = OnnxEncoder(open_bundle(folder))
        ours, theirs = (rank(served(e, log, self._job.window), log, split.test) for e in (candidate, self._serving))
        found = beside(ours, theirs, log, split, split.test, metric)
        model = SequenceEncoder.from_pretrained(str(folder)).eval()
        worst = parity(model, to_onnx(model) if self._asked.compress == "int8" else (folder / ONNX).read_bytes())  # int8's rules were the export's
        times: dict[str, Any] = {f"{who}latency_ms": latency(e, log, split, self._job) for who, e in (("", candidate), ("serving_", self._serving))}
        if self._asked.compress:
            times["compressed"] = {"size_mb": megabytes(open_bundle(self._asked.serving).folder), "latency_ms": times["serving_latency_ms"]}
        bounds = {"parity": worst, "size_mb": (self._steps.done("bundle") or {})["size_mb"], **times}
        return {"metric": metric, "candidate": candidate.version, "serving": self._serving.version, "slices": found, **bounds}

    def _gate(self) -> dict[str, Any]:
        figures = self._steps.done("evaluate") or {}
        findings = judge(figures, self._asked.rules, [p.name for p in self._job.platforms])
        return {"passed": refusal(findings) is None, "refused": refusal(findings), "findings": [asdict(f) for f in findings]}


def megabytes(folder: Path) -> float:
    """Of a bundle's files."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def latency(encoder: Encoder, log: EventLog, split: Split, job: Job) -> float:
    """ms for CHUNK windows, the longest of the test's, the least of several runs: what others do on the machine only adds."""
    longest = np.argsort(split.test.begin - split.test.end, kind="stable")[:CHUNK]
    some = replace(split.test, **{k: np.resize(getattr(split.test, k)[longest], CHUNK) for k in ("begin", "end", "target")})
    features: Features = seen(log, some, encoder.max_len, job.window)
    found = []
    encoder.encode(features, log.catalogue.table)
    for _ in range(TIMED):
        began = time.perf_counter()
        encoder.encode(features, log.catalogue.table)
        found.append(time.perf_counter() - began)
    return 1000 * min(found)


def retrain(job: Job, folder: Path, say: Say, point: Callable[[str], None] = lambda at: None) -> dict[str, Any]:
    """Go through the steps of a run, or go on; the gate's findings. Raises DataError, BundleError."""
    torch.set_num_threads(job.recipe.threads or torch.get_num_threads())
    return Retrain(job, Steps(folder, point), say).run()
