"""A new encoder turned into the serving one's space, and whether readers may mix vectors of the two. Pure: arrays and a model in, a model out.

Orthogonal Procrustes (Schönemann 1966): R = argmin ‖A R - B‖ over orthogonal R, for A the new and B the serving vectors of the same items, as rows;
with A'B = U S V', R = U V'. Every item vector becomes x R and every interest vector u R, so that u R · x R = u · x: no score changes. Folded into
the weights it costs nothing at serving. Netflix turns embeddings of successive trainings alike (arXiv 2508.07574).

Shape letters: n anchor items, E dims of the interest space.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes

from encoder.model import SequenceEncoder

HELD = 5
"""Every so manieth anchor is not fitted on: the cosine is measured on these."""


@dataclass(frozen=True)
class Alignment:
    """How to turn the new space, and how near it comes to the serving one."""

    rotation: np.ndarray
    """R (E, E), orthogonal: x R is x in the serving space."""
    cosine: float
    """Mean cosine of the turned and the serving vector of an anchor that was not fitted on."""
    cosine_before: float
    """The same without turning."""
    anchors: int
    """Anchors that were fitted on."""


def fit(new: np.ndarray, serving: np.ndarray) -> Alignment | None:
    """(n, E) L2-normalised vectors of the same items by the new and by the serving encoder; None for other dims, or too few of them to tell."""
    if new.shape != serving.shape:
        return None
    there = new.any(1) & serving.any(1)
    new, serving = new[there].astype(np.float64), serving[there].astype(np.float64)
    held = np.arange(len(new)) % HELD == 0
    if (~held).sum() < 2 * new.shape[1]:
        return None
    rotation, _ = orthogonal_procrustes(new[~held], serving[~held])
    cosine, before = (float((x[held] * serving[held]).sum(1).mean()) for x in (new @ rotation, new))
    return Alignment(rotation, cosine, before, int((~held).sum()))


def rotated(model: SequenceEncoder, rotation: np.ndarray) -> SequenceEncoder:
    """The same encoder in a space turned by R (E, E): items and interest vectors times R, all scores as before.

    The projector ends in two linear maps and a residual, which are added, then normalised: each is turned, and normalising keeps to it. The item
    input takes R back, so that the layers see what they were trained on. The output's last map is turned; the decayed mean that it is added to is
    made of turned items already.
    """
    out = copy.deepcopy(model)
    with torch.no_grad():
        r = torch.from_numpy(rotation).to(out.out.weight.dtype)
        for last in (out.projector.direct, out.projector.down, out.out):
            last.weight.copy_(r.T @ last.weight)
            last.bias.copy_(last.bias @ r)
        out.residual.weight.copy_(out.residual.weight @ r)
        out.item.weight.copy_(out.item.weight @ r)
    return out


@dataclass(frozen=True)
class Mixing:
    """What readers get who have vectors of both releases: a metric of the serving release alone, and of each mix."""

    serving: float
    """Interest vectors and item vectors of the serving release."""
    old_items: float
    """New interest vectors, item vectors of the serving release: a reader that has not read the items again."""
    old_users: float
    """Interest vectors of the serving release, new item vectors: a user who is not encoded again yet."""

    @property
    def loss(self) -> float:
        """The larger share of the serving release's metric that a mix loses; 0 where there is nothing to lose."""
        return 1 - min(self.old_items, self.old_users) / self.serving if self.serving > 0 else 0.0


def compatible(found: Alignment | None, mixing: Mixing | None, min_cosine: float, max_loss: float) -> tuple[bool, str]:
    """Whether the new release keeps the serving space's id, and why."""
    if found is None or mixing is None:
        return False, "the serving space has other dims, or there are too few anchor items"
    told = f"aligned cosine {found.cosine:.4f} (want at least {min_cosine}), mixed readers lose {mixing.loss:.2%} (want at most {max_loss:.2%})"
    return found.cosine >= min_cosine and mixing.loss <= max_loss, told
