"""The encoder that training starts from, and which items get an ID residual."""

from dataclasses import fields

import numpy as np
import torch

from encoder.config import PLATFORMS, Switches, preset
from encoder.model import SequenceEncoder
from encoder.recipe import Recipe
from training.bodies import with_pretrained_body
from training.log import EventLog
from training.splits import DataError, Split

ENOUGH = 5  # items a dim, for a whitening that is more than noise


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
    switches = {f.name: getattr(recipe, f.name) for f in fields(Switches)}
    config = preset(recipe.preset, data.catalogue.table.dims, residuals=int(residual.max(initial=0)), **switches)
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
