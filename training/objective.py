"""Batches -> the weighted sum of all tasks' losses, over all platforms at once.

L = Σ_i ω_p(i) · retrieval_i / n + w_b · behavior + w_c · class + w_v · value, ω_p ∝ (events of platform p)^platform_power, averaging 1 over events.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from encoder.config import PLATFORMS
from encoder.features import UNKNOWN
from encoder.model import SequenceEncoder
from encoder.recipe import Recipe
from training import losses
from training.batches import Batch
from training.log import EventLog


class Sampler:
    """Negatives per platform, drawn from counts^power with replacement; and what logQ needs of them.

    Items without a training event are none: nobody turned them down, and a model that was told so would rank new items last.
    """

    def __init__(self, counts: np.ndarray, platform: np.ndarray, size: int, power: float, logq: bool) -> None:
        self.size = size
        self._rows, self._edges, self._log_expected = {}, {}, {}
        for code in np.unique(platform[platform > 0]).tolist():
            rows = np.flatnonzero((platform == code) & (counts > 0))
            if not len(rows):
                continue
            share = counts[rows].astype(np.float64) ** power
            share /= share.sum()
            self._rows[code], self._edges[code] = rows, share.cumsum()
            self._log_expected[code] = (np.log(size * share) if logq and size else np.zeros(len(rows))).astype(np.float32)

    def draw(self, seed: tuple[int, ...]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Platform -> rows (size,), log of their expected number among the drawn (size,); every item once where `size` is 0."""
        r = np.random.default_rng(seed)
        if not self.size:
            return {code: (rows, np.zeros(len(rows), np.float32)) for code, rows in self._rows.items()}
        at = {code: np.minimum(np.searchsorted(e, r.random(self.size)), len(e) - 1) for code, e in self._edges.items()}
        return {code: (self._rows[code][i], self._log_expected[code][i]) for code, i in at.items()}


class Objective(nn.Module):
    """An encoder with the catalogue that only training needs."""

    def __init__(self, encoder: SequenceEncoder, recipe: Recipe, log: EventLog, counts: np.ndarray, residual: np.ndarray) -> None:
        super().__init__()
        self.encoder, self.recipe = encoder, recipe
        catalogue = log.catalogue
        self.register_buffer("vectors", torch.from_numpy(catalogue.table.vectors[: catalogue.size].copy()), False)
        self.register_buffer("residual", torch.from_numpy(residual), False)
        self.register_buffer("weight", torch.from_numpy(platform_weights(counts, catalogue.platform, catalogue.platforms, recipe)), False)

    def forward(self, batch: Mapping[str, Tensor], negatives: Mapping[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """A batch as `arrays` gives it -> "loss" and its parts, each a mean."""
        model, recipe = self.encoder, self.recipe
        needed = batch["needed"]
        table = model.project(self.vectors[needed], self.residual[needed], drop=self.training)
        table = table * (needed != UNKNOWN)[:, None]
        inputs = {k.removeprefix("in."): v for k, v in batch.items() if k.startswith("in.")}
        inputs["items"] = table[inputs["items"]]
        hidden, users = model.states(**inputs)
        parts = {"retrieval": self._retrieval(users, table, batch, negatives)}
        mask = batch["hidden"]
        if recipe.weight_behavior and mask.any():
            parts["behavior"] = losses.behavior(model.behavior_head(hidden[mask]), batch["behavior"][mask], self._even(mask))
        true = batch["value"]
        has = mask & ~true.isnan()
        if recipe.weight_value and has.any():
            platform = batch["platform"][has]
            z = (true[has] - model.value_mean[platform]) / model.value_scale[platform]
            parts["value"] = losses.value(model.value_head(hidden[has])[:, 0], z, self._even(has))
        known = batch["strong"] >= 0
        if recipe.weight_class and known.any():
            parts["class"] = losses.classes(model.class_head(hidden[known])[:, 0], batch["strong"][known], self._even(known))
        weights = {"retrieval": 1.0, "behavior": recipe.weight_behavior, "class": recipe.weight_class, "value": recipe.weight_value}
        return {"loss": torch.stack([weights[k] * v for k, v in parts.items()]).sum(), **{k: v.detach() for k, v in parts.items()}}

    def _even(self, mask: Tensor) -> Tensor:
        return torch.full((int(mask.sum()),), 1.0 / int(mask.sum()), device=mask.device)

    def _retrieval(self, users: Tensor, table: Tensor, batch: Mapping[str, Tensor], negatives: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        target, platform = batch["target"], batch["target_platform"]
        has = batch["has_target"]
        total = users.new_zeros(())
        for code, (rows, log_expected) in negatives.items():
            mine = has & (platform == code)
            if not mine.any():
                continue
            weight = self.weight[code].expand(int(mine.sum())) / has.sum()
            u, to = users[mine], target[mine]
            if self.recipe.negatives:
                hits = losses.pairs(to, rows)
                total = total + losses.sampled_retrieval(u, table[to], table[rows], log_expected, hits, self.encoder.temperature, weight)
            else:
                at = torch.searchsorted(rows, to)
                total = total + losses.retrieval(u, at, table[rows], self.encoder.temperature, weight)
        return total


def arrays(batch: Batch, negatives: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> tuple[dict[str, Tensor], dict[int, tuple[Tensor, Tensor]]]:
    """A batch as tensors. Item rows become positions among `needed`, the catalogue rows that this step projects."""
    drawn = [rows for rows, _ in negatives.values()]
    needed, inverse = np.unique(np.concatenate([batch.inputs["items"].ravel(), batch.target.ravel(), *drawn, [UNKNOWN]]), return_inverse=True)
    n, m = batch.inputs["items"].size, batch.target.size
    out = {f"in.{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.inputs.items()}
    out["in.items"] = torch.from_numpy(inverse[:n].reshape(batch.inputs["items"].shape))
    out |= {
        "needed": torch.from_numpy(needed.astype(np.int64)),
        "target": torch.from_numpy(inverse[n : n + m].reshape(batch.target.shape)),
        "has_target": torch.from_numpy(batch.target != UNKNOWN),
        "target_platform": torch.from_numpy(batch.target_platform),
        "hidden": torch.from_numpy(batch.hidden),
        "behavior": torch.from_numpy(np.ascontiguousarray(batch.behavior)),
        "platform": torch.from_numpy(np.ascontiguousarray(batch.platform)),
        "value": torch.from_numpy(batch.value.astype(np.float32)),
        "strong": torch.from_numpy(batch.strong),
    }
    at, cut = n + m, {}
    for code, (rows, log_expected) in negatives.items():
        cut[code] = (torch.from_numpy(inverse[at : at + len(rows)]), torch.from_numpy(log_expected))
        at += len(rows)
    return out, cut


def platform_weights(counts: np.ndarray, platform: np.ndarray, names: Mapping[int, str], recipe: Recipe) -> np.ndarray:
    """(PLATFORMS,) ω_p: events^platform_power times the recipe's own weight, scaled so that they average 1 over events."""
    events = np.bincount(platform, weights=counts, minlength=PLATFORMS)[:PLATFORMS]
    weight = np.where(events > 0, np.maximum(events, 1) ** recipe.platform_power, 0)
    for code, name in names.items():
        weight[code] *= recipe.platform_weights.get(name, 1.0)
    total = (weight * events).sum()
    return (weight * (events.sum() / total if total else 1.0)).astype(np.float32)
