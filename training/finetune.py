"""The training loop: one run of a recipe, resumable at any step, on one process or several (accelerate)."""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from transformers import get_scheduler

from encoder.model import SequenceEncoder
from encoder.recipe import Recipe
from training.adapters import Ranks, adapt, adaptation, merged
from training.batches import batch, epoch
from training.checkpoint import Checkpoints, Loop
from training.evaluate import rank
from training.initial import fresh, residual_rows
from training.log import EventLog
from training.metrics import METRICS
from training.objective import Objective, Sampler, arrays
from training.optimisation import freeze, optimizer_of, warmed_up
from training.scorers import model_scores
from training.splits import VALIDATION_CASES, DataError, Split
from training.tracking import track, tracker

log = logging.getLogger("currents.training")


@dataclass(frozen=True)
class Trained:
    """The best encoder of a run."""

    model: SequenceEncoder
    residual: np.ndarray
    """(N,) row of each catalogue item among the ID residuals, 0 for none."""
    history: list[dict[str, float]]
    """One row an epoch: mean losses and the validation metrics."""
    losses: list[float]
    """Of every step of this process, since it was started or resumed."""


def train(
    data: EventLog,
    split: Split,
    recipe: Recipe,
    folder: Path,
    start: SequenceEncoder | None = None,
    note: Callable[[str], None] = log.info,
    residual: np.ndarray | None = None,
) -> Trained:
    """Train to the end, or go on from the checkpoint in `folder`. Raises DataError for data that cannot be trained on.

    `residual` (N,): rows of the ID residuals of `start`, where they are not those that the recipe would choose.
    """
    return Run(data, split, recipe, folder, start, note, residual).to_the_end()


def accelerator_of(recipe: Recipe, folder: Path) -> Accelerator:
    """The devices, precision, accumulation and tracker of a recipe. Raises DataError where the tracker's package is missing."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=recipe.precision,
        gradient_accumulation_steps=recipe.accumulate,
        log_with=tracker(recipe),
        project_dir=str(folder),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)],
    )


class Run:
    """One training run on this process: the model, the optimizer, the position in the epochs, and their checkpoints."""

    def __init__(
        self,
        data: EventLog,
        split: Split,
        recipe: Recipe,
        folder: Path,
        start: SequenceEncoder | None,
        note: Callable[[str], None],
        residual: np.ndarray | None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(recipe.threads or torch.get_num_threads())
        self._data, self._split, self._recipe, self._note = data, split, recipe, note
        self._accelerator = accelerator = accelerator_of(recipe, folder)
        set_seed(recipe.seed)
        counts = data.counts(split.trained(len(data.rows)))
        self._residual = residual_rows(counts, recipe) if residual is None else residual
        encoder = fresh(data, split, recipe, self._residual) if start is None else start
        self._at_once = accelerator.num_processes * recipe.accumulate  # batches of an optimizer step
        steps = math.ceil(len(epoch(data, split, recipe, 0)) / self._at_once) * recipe.epochs
        if not steps:
            raise DataError("no user has two training events")
        self._encoder = adapt(encoder, recipe, steps)
        objective, self._ranks = Objective(self._encoder, recipe, data, counts, self._residual), Ranks(self._encoder, recipe)
        freeze(objective, recipe)
        self._sampler = Sampler(counts, data.catalogue.platform, recipe.negatives, recipe.negatives_power, recipe.logq)
        optimizer = optimizer_of(objective, recipe)
        warmup, shape = round(recipe.warmup * steps), {"min_lr_rate": 0.1}
        self._scheduler = get_scheduler("cosine_with_min_lr", optimizer, warmup, steps, scheduler_specific_kwargs=shape)
        self._average = AveragedModel(self._encoder, multi_avg_fn=warmed_up(recipe.ema))
        self._average.requires_grad_(False)
        self._objective, self._optimizer = accelerator.prepare(objective, optimizer)
        accelerator.register_for_checkpointing(self._average, self._scheduler, self._ranks)
        self._checkpoints = Checkpoints(accelerator, folder, recipe, data)
        stored = self._checkpoints.load()
        self._loop = stored or Loop()
        if stored is not None:
            note(f"going on at epoch {stored.epoch}, step {stored.step}")
        track(accelerator, recipe, folder)
        self._valid = split.valid.at_most(VALIDATION_CASES, recipe.seed)
        self._losses: list[float] = []

    def to_the_end(self) -> Trained:
        """Every epoch that is left, until validation has not improved for `patience` epochs; then the weights of the best epoch."""
        loop, recipe, console = self._loop, self._recipe, Console(stderr=True)
        if not (loop.epoch or loop.step):
            self._measure_start()
        with Progress(console=console, disable=not (self._accelerator.is_main_process and console.is_terminal), transient=True) as progress:
            while loop.epoch < recipe.epochs and loop.epoch - loop.best_epoch <= recipe.patience:
                self._epoch(progress)
        self._note(self._ended())
        self._accelerator.end_training()
        final = copy.deepcopy(self._average.module).cpu()
        self._checkpoints.restore_best(final)
        return Trained(merged(final, recipe).eval(), self._residual, loop.history, self._losses)

    def _measure_start(self) -> None:
        """Validation before the first step: the start counts as an epoch when the best one is chosen."""
        loop, model = self._loop, self._average.module
        found = rank(model_scores(model, self._data, self._residual), self._data, self._valid)
        if not len(found.rank):
            return
        loop.best = float(METRICS["ndcg@10"](found.rank).mean())
        self._note(f"start: valid_ndcg@10 {loop.best:.4f}, valid_hr@10 {float((found.rank <= 10).mean()):.4f}")
        self._checkpoints.keep(model)

    def _ended(self) -> str:
        """Why training ended, and which epoch is kept."""
        loop, epochs, patience = self._loop, self._recipe.epochs, self._recipe.patience
        early = f"stopped early after epoch {loop.epoch}/{epochs}, the last {patience} of which were no better; " if loop.epoch < epochs else ""
        return early + ("no epoch is better than the start, which is kept" if loop.best_epoch < 0 else f"epoch {loop.best_epoch + 1} is kept")

    def _epoch(self, progress: Progress) -> None:
        """The steps of the epoch that are left, validation, and a checkpoint."""
        loop, batches = self._loop, self._batches()
        bar = progress.add_task(f"epoch {loop.epoch + 1}", total=len(batches), completed=loop.step)
        self._objective.train()
        for step in range(loop.step, len(batches)):
            parts = self._backward(batches[step], step)
            if self._accelerator.sync_gradients:
                self._update()
            for name, part in parts.items():
                loop.totals[name] = loop.totals.get(name, 0.0) + float(part.detach())
            loop.step = step + 1
            progress.update(bar, completed=loop.step)
            if loop.step % (self._recipe.checkpoint_steps * self._recipe.accumulate) == 0 and loop.step < len(batches):
                self._checkpoints.save(loop)
        progress.remove_task(bar)
        self._validate({name: total / max(len(batches), 1) for name, total in loop.totals.items()})
        loop.epoch, loop.step, loop.totals = loop.epoch + 1, 0, {}
        self._checkpoints.save(loop)

    def _batches(self) -> list[np.ndarray]:
        """This process's batches of the epoch, as user numbers: every process has as many, and every optimizer step is whole."""
        batches = epoch(self._data, self._split, self._recipe, self._loop.epoch)
        batches = list(islice(cycle(batches), math.ceil(len(batches) / self._at_once) * self._at_once))
        return batches[self._accelerator.process_index :: self._accelerator.num_processes]

    def _backward(self, users: np.ndarray, step: int) -> dict[str, Tensor]:
        """Add the gradients of one batch; its losses by name. All chance comes from seed, epoch and step: a resumed run draws the same."""
        accelerator = self._accelerator
        number = (self._recipe.seed, self._loop.epoch, step * accelerator.num_processes + accelerator.process_index)
        torch.manual_seed(hash(number) & 0x7FFFFFFF)  # of dropout
        tensors, negatives = arrays(batch(self._data, self._split, self._recipe, users, number), self._sampler.draw((*number, 1)))
        tensors = {k: v.to(accelerator.device) for k, v in tensors.items()}
        negatives = {k: (a.to(accelerator.device), b.to(accelerator.device)) for k, (a, b) in negatives.items()}
        with accelerator.accumulate(self._objective), accelerator.autocast():
            parts: dict[str, Tensor] = self._objective(tensors, negatives)
            loss = parts["loss"] + adaptation(self._encoder, self._recipe)
            accelerator.backward(loss)
        self._losses.append(float(loss.detach()))
        return parts

    def _update(self) -> None:
        """One optimizer step with the accumulated gradients; then AdaLoRA's ranks, the learning rate and the averaged weights."""
        self._accelerator.clip_grad_norm_(self._objective.parameters(), self._recipe.clip)
        self._optimizer.step()
        self._ranks.step()
        self._optimizer.zero_grad()
        self._scheduler.step()
        self._average.update_parameters(self._encoder)

    def _validate(self, losses: dict[str, float]) -> None:
        """Rank the validation cases by the averaged weights, add the epoch's row to the history, keep the weights where they are the best so far."""
        loop, model = self._loop, self._average.module
        found = rank(model_scores(model, self._data, self._residual), self._data, self._valid)
        metric = float(METRICS["ndcg@10"](found.rank).mean())
        row = {**losses, "valid_ndcg@10": metric, "valid_hr@10": float((found.rank <= 10).mean())}
        loop.history.append(row)
        self._accelerator.log(row, step=loop.epoch)
        self._note(f"epoch {loop.epoch + 1}/{self._recipe.epochs}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items()))
        if metric > loop.best:
            loop.best, loop.best_epoch = metric, loop.epoch
            self._checkpoints.keep(model)
