"""The training loop: what the recipe asks for, resumable at any step, on one process or several (accelerate)."""

import copy
import fnmatch
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.console import Console
from rich.progress import Progress
from torch.optim.swa_utils import AveragedModel
from transformers import get_scheduler

from encoder.config import PLATFORMS, preset
from encoder.model import SequenceEncoder, untouched
from encoder.recipe import Recipe
from training.adapters import Ranks, adapt, adaptation, merged
from training.batches import batch, epoch
from training.bodies import with_pretrained_body
from training.checkpoint import Checkpoints, Loop
from training.evaluate import rank
from training.log import EventLog
from training.metrics import METRICS
from training.objective import Objective, Sampler, arrays
from training.scorers import model_scores
from training.splits import VALIDATION_CASES, DataError, Split
from training.tracking import track, tracker

log = logging.getLogger("currents.training")
ENOUGH = 5  # items a dim, for a whitening that is more than noise


@dataclass(frozen=True)
class Trained:
    """The best encoder of a run."""

    model: SequenceEncoder
    residual: np.ndarray
    """(N,) row of each catalogue item among the ID residuals, 0 for none."""
    history: list[dict[str, float]]
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
    """Train to the end, or go on from what is in `folder`. Raises DataError for data that cannot be trained on.

    `residual` (N,): rows of the ID residuals of `start`, where they are not those that the recipe would choose.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=recipe.precision,
        gradient_accumulation_steps=recipe.accumulate,
        log_with=tracker(recipe),
        project_dir=str(folder),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)],
    )
    set_seed(recipe.seed)
    counts = data.counts(split.trained(len(data.rows)))
    residual = residual_rows(counts, recipe) if residual is None else residual
    encoder = fresh(data, split, recipe, residual) if start is None else start
    at_once = accelerator.num_processes * recipe.accumulate  # batches of an optimizer step
    steps = math.ceil(len(epoch(data, split, recipe, 0)) / at_once) * recipe.epochs
    if not steps:
        raise DataError("no user has two training events")
    encoder = adapt(encoder, recipe, steps)
    objective, ranks = Objective(encoder, recipe, data, counts, residual), Ranks(encoder, recipe)
    freeze(objective, recipe)
    sampler = Sampler(counts, data.catalogue.platform, recipe.negatives, recipe.negatives_power, recipe.logq)
    optimizer = optimizer_of(objective, recipe)
    scheduler = get_scheduler("cosine_with_min_lr", optimizer, round(recipe.warmup * steps), steps, scheduler_specific_kwargs={"min_lr_rate": 0.1})
    average = AveragedModel(objective.encoder, multi_avg_fn=warmed_up(recipe.ema))
    average.requires_grad_(False)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    accelerator.register_for_checkpointing(average, scheduler, ranks)
    checkpoints = Checkpoints(accelerator, folder, recipe, data)
    if (loop := checkpoints.load()) is None:
        loop = Loop()
    else:
        note(f"going on at epoch {loop.epoch}, step {loop.step}")
    track(accelerator, recipe, folder)
    seen: list[float] = []
    valid = split.valid.at_most(VALIDATION_CASES, recipe.seed)
    console = Console(stderr=True)
    with Progress(console=console, disable=not (accelerator.is_main_process and console.is_terminal), transient=True) as progress:
        while loop.epoch < recipe.epochs and loop.epoch - loop.best_epoch <= recipe.patience:
            batches = epoch(data, split, recipe, loop.epoch)
            batches = list(islice(cycle(batches), math.ceil(len(batches) / at_once) * at_once))  # every process has as many, every step is whole
            mine = batches[accelerator.process_index :: accelerator.num_processes]
            bar = progress.add_task(f"epoch {loop.epoch + 1}", total=len(mine), completed=loop.step)
            wrapped.train()
            for step in range(loop.step, len(mine)):
                number = (recipe.seed, loop.epoch, step * accelerator.num_processes + accelerator.process_index)
                torch.manual_seed(hash(number) & 0x7FFFFFFF)  # dropout too is the same after a resumption
                tensors, negatives = arrays(batch(data, split, recipe, mine[step], number), sampler.draw((*number, 1)))
                tensors = {k: v.to(accelerator.device) for k, v in tensors.items()}
                negatives = {k: (a.to(accelerator.device), b.to(accelerator.device)) for k, (a, b) in negatives.items()}
                with accelerator.accumulate(wrapped), accelerator.autocast():
                    parts = wrapped(tensors, negatives)
                    loss = parts["loss"] + adaptation(encoder, recipe)
                    accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), recipe.clip)
                    optimizer.step()
                    ranks.step()
                    optimizer.zero_grad()
                    scheduler.step()
                    average.update_parameters(encoder)
                seen.append(float(loss.detach()))
                for name, part in parts.items():
                    loop.totals[name] = loop.totals.get(name, 0.0) + float(part.detach())
                loop.step = step + 1
                progress.update(bar, completed=loop.step)
                if loop.step % (recipe.checkpoint_steps * recipe.accumulate) == 0 and loop.step < len(mine):
                    checkpoints.save(loop)
            progress.remove_task(bar)
            model = average.module
            found = rank(model_scores(model, data, residual), data, valid)
            metric = float(METRICS["ndcg@10"](found.rank).mean())
            row = {k: v / max(len(mine), 1) for k, v in loop.totals.items()}
            row |= {"valid_ndcg@10": metric, "valid_hr@10": float((found.rank <= 10).mean())}
            loop.history.append(row)
            accelerator.log(row, step=loop.epoch)
            note(f"epoch {loop.epoch + 1}/{recipe.epochs}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items()))
            if metric > loop.best:
                loop.best, loop.best_epoch = metric, loop.epoch
                checkpoints.keep(model)
            loop.epoch, loop.step, loop.totals = loop.epoch + 1, 0, {}
            checkpoints.save(loop)
    accelerator.end_training()
    final = copy.deepcopy(average.module).cpu()
    checkpoints.restore_best(final)
    return Trained(merged(final, recipe).eval(), residual, loop.history, seen)


def residual_rows(counts: np.ndarray, recipe: Recipe, there: np.ndarray | None = None) -> np.ndarray:
    """(N,) training events of each item -> (N,) row of its ID residual: 1, 2, … for items with enough events, 0 for the rest.

    `there` (N,): not zero for items that have one already, and keep it.
    """
    enough = counts >= recipe.residual_min_count if recipe.residuals else np.zeros(len(counts), bool)
    if there is not None and recipe.residuals:
        enough |= there > 0
    return np.where(enough, enough.cumsum(), 0).astype(np.int64)


def fresh(data: EventLog, split: Split, recipe: Recipe, residual: np.ndarray) -> SequenceEncoder:
    """The untrained encoder of a recipe, which equals the baseline; it knows how the platforms' values are spread."""
    same = {k: getattr(recipe, k) for k in (
        "dims", "max_len", "dropout", "content", "platform", "behavior", "time", "distance", "start_at_mean", "residual_dropout")}  # fmt: skip
    config = preset(recipe.preset, data.catalogue.table.dims, residuals=int(residual.max(initial=0)), **same)
    if recipe.body:
        try:
            encoder = with_pretrained_body(config, recipe.body)
        except (OSError, ValueError) as error:
            raise DataError(str(error).splitlines()[0]) from None
    else:
        encoder = SequenceEncoder(config)
    if not recipe.content:
        torch.nn.init.normal_(encoder.residual.weight[1:], std=0.02)
    there = data.catalogue.table.vectors[1 : data.catalogue.size]
    there = there[there.any(1)]
    if recipe.whiten and len(there) >= ENOUGH * there.shape[1]:
        encoder.projector.whiten(torch.from_numpy(there))
    rows = data.rows[split.trained(len(data.rows))]
    for code in range(PLATFORMS):
        here = (rows["platform"] == code) | (code == 0)  # 0: platform not told
        values = rows["value"][here & np.isfinite(rows["value"])]
        if len(values):
            encoder.value_mean[code], encoder.value_scale[code] = float(values.mean()), max(float(values.std()), 1e-3)
    return encoder


def freeze(objective: Objective, recipe: Recipe) -> None:
    """Freeze the parameters that a pattern names. Raises DataError for a pattern that names none."""
    names = dict(objective.encoder.named_parameters())
    for pattern in recipe.freeze:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise DataError(
                f"training.freeze: {pattern!r} names no parameter; there are {', '.join(sorted({n.split('.')[0] + '.*' for n in names}))}"
            )
        for name in found:
            names[name].requires_grad_(False)


def optimizer_of(objective: Objective, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or SGD; no decay on norms, biases and embeddings, its own on the ID residuals."""
    spared = {f"encoder.{n}" for n in untouched(objective.encoder)}
    groups: dict[float, list[Any]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            decay = recipe.residual_decay if name.endswith("residual.weight") else 0.0 if name in spared else recipe.weight_decay
            groups.setdefault(decay, []).append(parameter)
    parameters = [{"params": p, "weight_decay": d} for d, p in groups.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(parameters, lr=recipe.lr, fused=True)


def warmed_up(decay: float) -> Callable[[list[torch.Tensor], list[torch.Tensor], Any], None]:
    """An exponential average that forgets the first steps faster: decay min(decay, (1 + t) / (10 + t))."""

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], n: Any) -> None:
        t = int(n)
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + t) / (10 + t)))

    return update
