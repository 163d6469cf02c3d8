"""One pure function a task, and their sum.

Shape letters: n positions, M candidates, E dims of the interest space, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def retrieval(users: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    """Full softmax: users (n, E), targets (n,) positions among candidates (M, E) -> weighted sum of cross-entropies."""
    logits = (users @ candidates.T).float() / temperature
    return (F.cross_entropy(logits, targets, reduction="none") * weight).sum()


def sampled_retrieval(
    users: Tensor, positives: Tensor, negatives: Tensor, log_expected: Tensor, hits: Tensor, temperature: Tensor, weight: Tensor
) -> Tensor:
    """Sampled softmax with logQ: users (n, E), positives (n, E), negatives (M, E) shared by all -> weighted sum.

    log_expected (M,): log of how often a negative is expected among the M, so that the sum over negatives estimates the sum over the catalogue
    (the positive is not corrected: it is always there, arXiv 2507.09331). hits (n, M): negatives that are the row's target.
    """
    positive = (users * positives).sum(1, keepdim=True).float() / temperature
    logits = (users @ negatives.T).float() / temperature - log_expected
    logits = torch.cat([positive, logits.masked_fill(hits, -1e9)], 1)
    target = torch.zeros(len(users), dtype=torch.long, device=users.device)
    return (F.cross_entropy(logits, target, reduction="none") * weight).sum()


def behavior(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(n, C) logits, (n,) codes -> weighted sum of cross-entropies."""
    return (F.cross_entropy(logits.float(), labels, reduction="none") * weight).sum()


def classes(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(n,) logits, (n,) 0 or 1 -> weighted sum of binary cross-entropies."""
    return (F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none") * weight).sum()


def value(predicted: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """(n,) predictions, (n,) z-scored values -> weighted sum of squared errors."""
    return ((predicted.float() - labels) ** 2 * weight).sum()
