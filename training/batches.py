"""Examples: segments of users' histories, augmented, as arrays. All chance comes from (seed, epoch, batch): a killed run goes on alike."""

from dataclasses import dataclass

import numpy as np

from encoder.config import MASK
from encoder.features import UNKNOWN, Features, model_inputs, padded
from encoder.recipe import Recipe
from schemas.events import BEHAVIOR_CODE
from training.log import EventLog, spans
from training.splits import Split

STRONG = np.array([BEHAVIOR_CODE[b] for b in ("like", "follow", "share", "comment", "save", "cart", "buy")])
"""What the class task predicts: whether the next event is one of these."""
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Batch:
    """B segments of T events with the targets of each event. Item rows are rows of the catalogue."""

    inputs: dict[str, np.ndarray]
    """As encoder.features.model_inputs makes them."""
    target: np.ndarray
    """(B, T) item row to retrieve, UNKNOWN for none."""
    target_platform: np.ndarray
    """(B, T) its platform."""
    hidden: np.ndarray
    """(B, T) whether the event's own behavior and value are hidden from the model and to be predicted."""
    platform: np.ndarray
    """(B, T) true platform."""
    behavior: np.ndarray
    """(B, T) true behavior."""
    value: np.ndarray
    """(B, T) true value, NaN for none."""
    strong: np.ndarray
    """(B, T) whether the next event is a strong action; -1 where there is no next."""


def epoch(log: EventLog, split: Split, recipe: Recipe, number: int) -> list[np.ndarray]:
    """The users of every batch of an epoch: of like length together, batches in random order."""
    r = np.random.default_rng((recipe.seed, number))
    length = split.end - split.begin
    users = np.flatnonzero(length >= 2)
    length = np.minimum(length[users], recipe.max_len + 1)
    order = np.lexsort((r.random(len(users)), length))
    cuts, steps, begin = list[np.ndarray](), 0, 0
    for i in range(len(order)):
        steps = int(length[order[i]])  # they rise, so this is the padded length of the batch
        if i > begin and (i - begin >= recipe.batch_users or (i - begin + 1) * steps > recipe.batch_events):
            cuts.append(users[order[begin:i]])
            begin = i
    if begin < len(order):
        cuts.append(users[order[begin:]])
    r.shuffle(cuts)
    return cuts


def batch(log: EventLog, split: Split, recipe: Recipe, users: np.ndarray, seed: tuple[int, ...]) -> Batch:
    """The segments of some users."""
    r = np.random.default_rng(seed)
    begin, end = split.begin[users], split.end[users]
    most = recipe.max_len + 1
    spare = np.maximum(end - begin - most, 0)
    end = end - (r.random(len(users)) * (spare + 1)).astype(np.int64)  # a long history: a segment from anywhere in it
    begin = np.maximum(begin, end - most)
    at = spans(begin, end)
    owner = np.repeat(np.arange(len(users)), end - begin)
    keep = kept(log.rows["platform"][at], owner, len(users), recipe, r)
    at, owner = at[keep], owner[keep]
    rows = log.rows[at]
    features = padded(rows, log.items[at], np.bincount(owner, minlength=len(users)))
    return examples(log, features, recipe, r)


def kept(platform: np.ndarray, owner: np.ndarray, users: int, recipe: Recipe, r: np.random.Generator) -> np.ndarray:
    """(n,) which events stay: some are dropped, and of some users a whole platform; nobody is left with fewer than two."""
    keep = r.random(len(owner)) >= recipe.drop_event
    favourite = platform[np.minimum(np.searchsorted(owner, np.arange(users)) + r.integers(0, 1 << 30, users) % np.bincount(owner), len(owner) - 1)]
    dropping = r.random(users) < recipe.drop_platform
    keep &= ~(dropping[owner] & (platform == favourite[owner]))
    few = np.bincount(owner, weights=keep, minlength=users) < 2
    out: np.ndarray = keep | few[owner]
    return out


def examples(log: EventLog, features: Features, recipe: Recipe, r: np.random.Generator) -> Batch:
    """Segments of T + 1 events -> T inputs, each with the event that it is to predict."""
    rows, steps = features.rows, features.rows.shape[1] - 1
    ts = np.where(features.mask, rows["ts_ms"], np.iinfo(np.int64).max)
    to = future(ts, features.lengths, recipe, r)  # (B, T) index of the target, 0 for none
    target = np.where(to > 0, np.take_along_axis(features.items, to, 1), UNKNOWN)
    inputs = {k: v[:, :steps] if v.ndim > 1 else v - 1 for k, v in model_inputs(features).items()}
    mask = features.mask[:, :steps] & (np.arange(steps) < (features.lengths - 1)[:, None])
    hidden = mask & (r.random(mask.shape) < recipe.mask)
    behavior = inputs["behavior"]
    inputs = hide(inputs, hidden)
    nameless = mask & (r.random(mask.shape) < recipe.unknown_platform)
    platform = inputs["platform"]
    inputs["platform"] = np.where(nameless, 0, platform)
    following = rows["behavior"][:, 1:]
    strong = np.where(features.mask[:, 1:], np.isin(following, STRONG), -1)
    value = np.where(mask, rows["value"][:, :steps], np.nan)
    return Batch(inputs, target, log.catalogue.platform[target].astype(np.int64), hidden, platform, behavior, value, strong)


def hide(inputs: dict[str, np.ndarray], hidden: np.ndarray) -> dict[str, np.ndarray]:
    """Model inputs without the behavior and the value of some events, (B, T) bool: what the model is then asked for."""
    numeric = inputs["numeric"].copy()
    numeric[hidden] *= (0, 1, 0, 1)  # value and its presence
    return {**inputs, "behavior": np.where(hidden, MASK, inputs["behavior"]), "numeric": numeric}


def future(ts: np.ndarray, lengths: np.ndarray, recipe: Recipe, r: np.random.Generator) -> np.ndarray:
    """(B, T + 1) times, int64 max in the padding -> (B, T) index of an event strictly later than each, 0 for none."""
    b, n = ts.shape
    at = np.broadcast_to(np.arange(n - 1), (b, n - 1))
    if recipe.targets == "next":
        later = (ts[:, 1:] > ts[:, :-1]) & (at + 1 < lengths[:, None])
        return np.where(later, at + 1, 0)
    horizon = int(recipe.horizon_days * DAY_MS)
    first = np.stack([np.searchsorted(row, row[:-1], "right") for row in ts])
    past = np.stack([np.searchsorted(row, row[:-1] + horizon, "right") for row in np.minimum(ts, np.iinfo(np.int64).max // 2)])
    past = np.minimum(past, lengths[:, None])
    drawn = first + (r.random((b, n - 1)) * np.maximum(past - first, 1)).astype(np.int64)
    return np.where((past > first) & (at < lengths[:, None]), np.minimum(drawn, n - 1), 0)
