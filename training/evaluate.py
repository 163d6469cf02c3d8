"""Full ranking of the target's platform for held-out next actions, point in time: every model sees what was known before the target, nothing later.

Policy: candidates are all items of the target's platform; those already in the user's history are left out, but the target itself stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.log import EventLog
from training.metrics import METRICS, concentration, coverage, difference, ranked, slices, summary
from training.splits import Cases, Split

CHUNK = 256
Score = Callable[[EventLog, Cases], np.ndarray]
"""A model: (log, b cases) -> (b, N) scores of every row of the catalogue, higher first."""


@dataclass(frozen=True)
class Ranked:
    """Ranks and top lists of n cases."""

    rank: np.ndarray
    """(n,) from 1."""
    top: np.ndarray
    """(n, TOP) rows of the catalogue, -1 where there are fewer."""


def rank(score: Score, log: EventLog, some: Cases) -> Ranked:
    """Rank the target of every case among the candidates of the policy above."""
    platform = log.catalogue.platform
    ranks, tops = [np.zeros(0, np.int64)], []
    for a in range(0, len(some), CHUNK):
        part = some.take(np.arange(a, min(a + CHUNK, len(some))))
        target = log.items[part.target]
        allowed = platform[None, :] == platform[target][:, None]
        for i, (x, y) in enumerate(zip(part.begin, part.end, strict=True)):
            allowed[i, log.items[x:y]] = False
        allowed[np.arange(len(part)), target] = True
        r, top = ranked(score(log, part), target, allowed)
        ranks.append(r)
        tops.append(top)
    return Ranked(np.concatenate(ranks), np.concatenate(tops) if tops else np.zeros((0, 1), np.int64))


def report(found: Ranked, log: EventLog, split: Split, some: Cases) -> dict[str, Any]:
    """Slice -> number of cases, metrics with intervals, coverage and concentration."""
    target = log.items[some.target]
    counts = log.counts(split.trained(len(log.rows)))
    user = log.users_of(some.target)
    trained = (split.end - split.begin)[user]
    platform = log.catalogue.platform[target]
    out: dict[str, Any] = {}
    for name, mask in slices(target, counts, trained, platform, log.catalogue.platforms).items():
        if mask.any():
            out[name] = measured(Ranked(found.rank[mask], found.top[mask]), log.catalogue.platform, platform[mask])
    return out


def beside(ours: Ranked, theirs: Ranked, log: EventLog, split: Split, some: Cases, metric: str) -> dict[str, Any]:
    """Slice -> cases, a metric of a candidate (`ours`) and of the serving release on the same cases, and the paired difference with its interval."""
    target = log.items[some.target]
    user = log.users_of(some.target)
    trained = (split.end - split.begin)[user]
    counts, out = log.counts(split.trained(len(log.rows))), dict[str, Any]()
    for name, mask in slices(target, counts, trained, log.catalogue.platform[target], log.catalogue.platforms).items():
        if mask.any():
            means = {who: float(METRICS[metric](r.rank[mask]).mean()) for who, r in (("serving", theirs), ("candidate", ours))}
            out[name] = {"cases": int(mask.sum()), **means, "difference": difference(ours.rank[mask], theirs.rank[mask], metric, users=user[mask])}
    return out


def measured(found: Ranked, platform: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Metrics of n cases; platforms of the catalogue's rows (N,) and of the targets (n,)."""
    items = int(np.isin(platform, np.unique(targets)).sum())
    shown = {"coverage@10": coverage(found.top, items), "concentration@10": concentration(found.top, items)}
    return {"cases": len(found.rank), **summary(found.rank), **shown}
