"""Fine-tune a Hugging Face text model as the item tower: what a user acts on next is to be near in the whitened space.

A step draws n pairs (a user's item x_i, a later one y_i) and takes, for z the whitened, L2-normalised vector of a text and τ the temperature,

    L = -1/n Σ_i log( e^{s(x_i, y_i)} / ( e^{s(x_i, y_i)} + Σ_{j ∈ N_i} e^{s(x_i, y_j) - log((n-1) q_j)} ) ),   s(x, y) = z_x · z_y / τ

and the same from y to x. q_j is how often item j is the later one of a pair: popular items are negatives more often, which would push them away
(logQ correction: Yi et al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019, eq. 3; that the positive stays uncorrected: arXiv 2507.09331).
N_i: the other pairs' items on the platform of y_i that are neither x_i nor y_i.

The whitening in z is the one of the model before training, so that training starts at the frozen tower; the tower's own is fitted afterwards.
Dropout stays off: runs are short, and a vector in training is then what the tower will make of the text.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize
from transformers import get_cosine_schedule_with_warmup

from encoder.recipe import TowerRecipe
from encoder.text import TextModel
from training.adapters import linears
from training.losses import sampled_retrieval
from training.pairs import Pairs, steps
from training.splits import DataError
from training.whiten import fit_on

START_ON = 5000  # texts of the whitening that training starts with
LR = {"lora": 5e-4, "full": 3e-5}


def tune(
    model: TextModel, texts: Sequence[str], data: Pairs, recipe: TowerRecipe, note: Callable[[str], None], console: Console | None = None
) -> list[float]:
    """Train the model where it is, adapters merged at the end; the loss of every step. Raises DataError for a loss that is no number."""
    torch.manual_seed(recipe.seed)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    ids = model.ids(texts)
    fitted = fit_on(model, texts, recipe.dims, recipe.seed, console, max(START_ON, 10 * recipe.dims))
    mean, matrix = (torch.from_numpy(a).to(model.device) for a in fitted)
    adapt(model, recipe)
    trained = [p for p in model.body.parameters() if p.requires_grad]
    note(f"{sum(p.numel() for p in trained):,} of {sum(p.numel() for p in model.body.parameters()):,} weights on {len(data):,} pairs")
    groups = [{"params": [p for p in trained if p.ndim >= 2]}, {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr or LR[recipe.mode], weight_decay=recipe.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, round(recipe.warmup * recipe.steps)), recipe.steps)
    losses = list[float]()
    with Progress(console=console, disable=console is None, transient=True) as bar:
        task = bar.add_task("tuning", total=recipe.steps)
        for step in range(recipe.steps):
            which = np.random.default_rng((recipe.seed, step)).integers(0, len(data), recipe.batch)
            needed, at = np.unique(np.concatenate([data.first[which], data.second[which]]), return_inverse=True)
            with sdpa_kernel(SDPBackend.MATH) if model.device.type == "cpu" else nullcontext():  # the flash one's way back is a third of a CPU's step
                z = normalize((model.pool([ids[i] for i in needed]) - mean) @ matrix)
            loss = step_loss(z, at[: recipe.batch], at[recipe.batch :], data, which, recipe)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise DataError(f"loss is {losses[-1]} at step {step + 1}: a lower lr may help")
            bar.update(task, advance=1, description=f"tuning, loss {np.mean(losses[-20:]):.3f}")
    merge(model, recipe)
    return losses


def step_loss(z: Tensor, first: np.ndarray, second: np.ndarray, data: Pairs, which: np.ndarray, recipe: TowerRecipe) -> Tensor:
    """z (m, dims) vectors of a step's items, (n,), (n,) rows of it for the pairs `which` of the data -> the loss."""
    sides = [torch.from_numpy(i).to(z.device) for i in (first, second)]
    tau, weight = z.new_tensor(recipe.temperature), z.new_full((len(which),), 1 / len(which))
    parts = []
    for step, (rows, targets) in zip(steps(data, which, recipe.symmetric, recipe.logq), (sides, sides[::-1]), strict=False):
        expected, left_out = torch.from_numpy(step.log_expected).to(z.device), torch.from_numpy(step.left_out).to(z.device).nonzero(as_tuple=True)
        found = z[targets]
        parts.append(sampled_retrieval(z[rows], found, found, expected, (left_out[0], left_out[1]), tau, weight))
    return torch.stack(parts).mean()


def adapt(model: TextModel, recipe: TowerRecipe) -> None:
    """Freeze all weights but LoRA's, or none; a pooler's stay, for nobody reads it."""
    if recipe.mode == "lora":
        targets = [name for name in linears(model.body) if "pooler" not in name]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft sets it itself, module by module
            model.body = get_peft_model(model.body, LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=targets))
    else:
        for name, parameter in model.body.named_parameters():
            parameter.requires_grad_("pooler" not in name)


def merge(model: TextModel, recipe: TowerRecipe) -> None:
    """Fold the adapters into the weights."""
    if recipe.mode == "lora":
        model.body = model.body.merge_and_unload()
    model.body.eval().requires_grad_(False)
