"""Full-ranking metrics and their intervals. Pure: ranks and top lists in, numbers out. Never sampled negatives (Krichene & Rendle, KDD 2020).

Shape letters: n cases, N items, K length of the top lists.
"""

from collections.abc import Callable, Mapping

import numpy as np

TOP = 50
RESAMPLES = 1000

METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hr@10": lambda rank: rank <= 10,
    "ndcg@10": lambda rank: (rank <= 10) / np.log2(rank + 1),
    "recall@10": lambda rank: rank <= 10,  # one relevant item a case: the same as the hit rate
    "recall@50": lambda rank: rank <= 50,
    "mrr": lambda rank: 1 / rank,
}
"""Name -> (n,) ranks from 1 -> (n,) the metric of each case."""


def ranked(scores: np.ndarray, target: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, N) scores, (n,) target items, (n, N) items that may be ranked -> ranks from 1 (n,), top lists (n, TOP), -1 where there are fewer.

    Ties keep the order of the items, so that a constant score is no hit by chance. A score that is no number is the lowest.
    """
    scores = np.where(allowed & ~np.isnan(scores), scores, -np.inf).astype(np.float32)
    mine = np.take_along_axis(scores, target[:, None], 1)
    before = np.arange(scores.shape[1])[None] < target[:, None]
    rank = 1 + ((scores > mine) | ((scores == mine) & before & allowed)).sum(1)
    k = min(TOP, scores.shape[1])
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.lexsort((top, -np.take_along_axis(scores, top, 1)), axis=1)
    top = np.take_along_axis(top, order, 1)
    return rank, np.where(np.isfinite(np.take_along_axis(scores, top, 1)), top, -1)


def coverage(top: np.ndarray, items: int) -> float:
    """Share of the items that are in anybody's top ten."""
    shown = np.unique(top[:, :10])
    return float((shown >= 0).sum() / max(items, 1))


def concentration(top: np.ndarray, items: int) -> float:
    """Share of all top-ten places that the most shown tenth of the items holds; .1 when all are shown alike."""
    places = top[:, :10][top[:, :10] >= 0]
    counts = np.sort(np.bincount(places))[::-1]
    return float(counts[: max(1, items // 10)].sum() / max(len(places), 1))


def interval(values: np.ndarray, seed: int = 0, users: np.ndarray | None = None) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over cases, or over the cases of whole users."""
    if not len(values):
        return float("nan"), float("nan")
    r = np.random.default_rng(seed)
    own = np.arange(len(values)) if users is None else np.unique(users, return_inverse=True)[1]
    sums, sizes = np.bincount(own, values.astype(float)), np.bincount(own)
    drawn = (r.integers(0, len(sums), len(sums)) for _ in range(RESAMPLES))
    means = [sums[some].sum() / sizes[some].sum() for some in drawn]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summary(rank: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]]:
    """(n,) ranks -> metric -> mean, low, high (95 %)."""
    out = {}
    for name, of in METRICS.items():
        values = of(rank)
        low, high = interval(values, seed)
        out[name] = {"mean": float(np.mean(values)) if len(values) else float("nan"), "low": low, "high": high}
    return out


def difference(ours: np.ndarray, theirs: np.ndarray, metric: str, seed: int = 0, users: np.ndarray | None = None) -> dict[str, float]:
    """Ranks of the same cases by two models -> mean difference of a metric with its 95 % interval, cases paired.

    `users`: (n,) whose case each is; whole users are resampled then, for the cases of one are alike (cluster bootstrap).
    """
    values = METRICS[metric](ours).astype(float) - METRICS[metric](theirs).astype(float)
    low, high = interval(values, seed, users)
    return {"mean": float(values.mean()) if len(values) else float("nan"), "low": low, "high": high}


def slices(target: np.ndarray, counts: np.ndarray, user_events: np.ndarray, platform: np.ndarray, names: Mapping[int, str]) -> dict[str, np.ndarray]:
    """Masks over cases: all, warm and item-cold (training events of the target item), user-cold (of the user), and each platform's."""
    out = {"all": np.ones(len(target), bool), "warm": counts[target] > 0, "item-cold": counts[target] == 0, "user-cold": user_events == 0}
    return out | {f"platform {names[code]}": platform == code for code in np.unique(platform).tolist()}
