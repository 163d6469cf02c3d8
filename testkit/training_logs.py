"""Small event logs and a fast recipe for tests of training."""

import numpy as np

from encoder.recipe import Recipe
from schemas.windows import DTYPE, NO_DWELL
from training.log import EventLog, catalogue, event_log
from training.splits import Split, cases

ITEMS, DIMS = 60, 16

QUICK = Recipe(preset="xs", dims=16, max_len=8, epochs=1, batch_users=8, negatives=16, log_to="none", precision="no", threads=1, residual_min_count=1)


def made_log(users: int = 40, seed: int = 0, ties: bool = False, dims: int = DIMS) -> EventLog:
    """Return a log of users with two tastes on two platforms. Each taste has its own items."""
    r = np.random.default_rng(seed)
    vectors = r.standard_normal((ITEMS, dims)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = [1 + n % 2 for n in range(ITEMS)]
    items = catalogue([f"p{c}:{n}" for n, c in enumerate(codes)], vectors, codes, {1: "p1", 2: "p2"})
    lengths = r.integers(3, 20, users)
    rows = np.zeros(int(lengths.sum()), DTYPE)
    owner = np.repeat(np.arange(users), lengths)
    chosen = 1 + (r.integers(0, ITEMS // 4, len(rows)) * 4 + (owner % 2) * 2 + r.integers(0, 2, len(rows)))
    rows["item_key"], rows["platform"] = items.table.keys[chosen], items.platform[chosen]
    rows["ts_ms"] = 1_700_000_000_000 + r.integers(0, 50 if ties else 30 * 86_400_000, len(rows))
    rows["event_id"], rows["dwell_ds"] = np.arange(len(rows)), NO_DWELL
    rows["behavior"], rows["value"] = r.integers(1, 6, len(rows)), np.where(r.random(len(rows)) < 0.5, r.normal(3, 1, len(rows)), np.nan)
    return event_log([f"u{n}" for n in owner], rows, items)


def everything(log: EventLog) -> Split:
    none = cases(log, np.zeros(0, np.int64))
    return Split(log.bounds[:-1], log.bounds[1:], none, none)
