"""One pure function a task, and their sum.

Shape letters: n positions, M candidates, E dims of the interest space, C classes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 256  # positions whose logits exist at once: they stay in the cache


class _LogSumExp(torch.autograd.Function):
    """log Σ_j exp(u_i · c_j + bias_j) without ever holding (n, M) logits: they are made ROWS at a time, and once more on the way back.

    The idea is that of Cut Cross-Entropy (arXiv 2411.09009).
    """

    @staticmethod
    def forward(ctx: Any, users: Tensor, candidates: Tensor, bias: Tensor, row: Tensor, column: Tensor) -> Tensor:
        device = users.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else users.dtype
        u, c = users.to(dtype), candidates.to(dtype)
        with torch.autocast(device, enabled=False):
            out = bias.new_empty(len(u))
            for at in range(0, len(u), ROWS):
                logits = _logits(u, c, bias, row, column, at)
                most = logits.amax(1, keepdim=True)
                out[at : at + ROWS] = logits.sub_(most).exp_().sum(1).log_() + most[:, 0]
        ctx.save_for_backward(u, c, bias, row, column, out)
        ctx.dtypes = users.dtype, candidates.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, c, bias, row, column, out = ctx.saved_tensors
        to_users, to_candidates = torch.empty_like(u, dtype=ctx.dtypes[0]), torch.zeros_like(c, dtype=torch.float32)
        for at in range(0, len(u), ROWS):
            part = slice(at, at + ROWS)
            share = _logits(u, c, bias, row, column, at).sub_(out[part, None]).exp_().mul_(gradients[0][part, None]).to(u.dtype)
            to_users[part] = share @ c
            to_candidates += share.T @ u[part]
        return to_users, to_candidates.to(ctx.dtypes[1]), None, None, None


def _logits(u: Tensor, c: Tensor, bias: Tensor, row: Tensor, column: Tensor, at: int) -> Tensor:
    """(ROWS, M) logits of the positions from `at`, float32; -1e9 where a pair is left out. `row` rises."""
    logits = (u[at : at + ROWS] @ c.T).float().add_(bias)
    a, b = torch.searchsorted(row, torch.tensor([at, at + ROWS], device=row.device)).tolist()
    logits[row[a:b] - at, column[a:b]] = -1e9
    return logits


def log_sum_exp(users: Tensor, candidates: Tensor, bias: Tensor | None = None, left_out: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """users (n, E), candidates (M, E), bias (M,), pairs (position rising, candidate) that do not count -> (n,) float32."""
    none = torch.zeros(0, dtype=torch.long, device=users.device)
    row, column = left_out or (none, none)
    bias = torch.zeros(len(candidates), device=users.device) if bias is None else bias
    found: Tensor = _LogSumExp.apply(users, candidates, bias, row, column)
    return found


def retrieval(users: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    """Full softmax: users (n, E), targets (n,) positions among candidates (M, E) -> weighted sum of cross-entropies."""
    scaled = users / temperature
    positive = (scaled * candidates[targets]).sum(1).float()
    return ((log_sum_exp(scaled, candidates) - positive) * weight).sum()


def sampled_retrieval(
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    log_expected: Tensor,
    hits: tuple[Tensor, Tensor],
    temperature: Tensor,
    weight: Tensor,
) -> Tensor:
    """Sampled softmax with logQ: users (n, E), positives (n, E), negatives (M, E) shared by all -> weighted sum.

    log_expected (M,): log of how often a negative is expected among the M, so that the sum over negatives estimates the sum over the catalogue
    (the positive is not corrected: it is always there, arXiv 2507.09331). hits: pairs of a position and a negative that is its target.
    """
    scaled = users / temperature
    positive = (scaled * positives).sum(1).float()
    rest = log_sum_exp(scaled, negatives, -log_expected, hits)
    return ((torch.logaddexp(positive, rest) - positive) * weight).sum()


def pairs(of: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) and (M,) numbers -> all pairs of positions where they are equal, the first rising."""
    ordered, where = among.sort()
    low, high = torch.searchsorted(ordered, of), torch.searchsorted(ordered, of, right=True)
    count = high - low
    row = torch.repeat_interleave(torch.arange(len(of), device=of.device), count)
    step = torch.arange(len(row), device=of.device) - (count.cumsum(0) - count)[row]
    return row, where[low[row] + step]


def behavior(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(n, C) logits, (n,) codes -> weighted sum of cross-entropies."""
    return (F.cross_entropy(logits.float(), labels, reduction="none") * weight).sum()


def classes(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(n,) logits, (n,) 0 or 1 -> weighted sum of binary cross-entropies."""
    return (F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none") * weight).sum()


def value(predicted: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(n,) predictions, (n,) z-scored values -> weighted sum of squared errors."""
    return ((predicted.float() - labels) ** 2 * weight).sum()
