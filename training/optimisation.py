"""Which parameters are trained, by which optimizer, and their exponential average."""

import fnmatch
from collections.abc import Callable
from typing import Any

import torch

from encoder.model import untouched
from encoder.recipe import Recipe
from training.objective import Objective
from training.splits import DataError


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
