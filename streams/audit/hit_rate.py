"""Hit rate of live vectors: the item of each user's newest event, ranked by the vector of the events before it."""

from collections.abc import Sequence

import numpy as np

from encoder.base import Encoder
from encoder.features import UNKNOWN, ItemTable, featurize
from schemas.windows import ROW_BYTES, rows_of

FIRST = 10


def hits(encoder: Encoder, table: ItemTable, platform: np.ndarray, windows: Sequence[bytes]) -> np.ndarray:
    """(B,) bool: whether the vector of the earlier events ranks the newest event's item among the FIRST.

    platform (N,): platform code of each row of the table, 0 for none. The ranking has all items of the newest event's platform except the items of
    the earlier events. Ties keep the order of the table, so a zero vector is no hit. Each window has at least two events, and the item of the newest
    event is known.
    """
    users = encoder.encode(featurize([w[:-ROW_BYTES] for w in windows], table, encoder.max_len), table)
    items = encoder.project(table.vectors[: table.size], table.keys[: table.size])
    found = np.zeros(len(windows), bool)
    for n, (user, window) in enumerate(zip(users, windows, strict=True)):
        events = rows_of(window)
        *before, target = table.index(events["item_key"]).tolist()
        scores = np.where(platform[: table.size] == events["platform"][-1], items @ user, -np.inf)
        mine = scores[target]
        scores[before] = -np.inf
        found[n] = (scores > mine).sum() + (scores[:target] == mine).sum() < FIRST
    return found


def comparable(table: ItemTable, windows: Sequence[bytes], most: int) -> list[bytes]:
    """Return up to `most` of the windows that `hits` accepts, spread evenly over the input."""
    good = [w for w in windows if len(w) > 2 * ROW_BYTES and table.index(rows_of(w)["item_key"][-1:])[0] != UNKNOWN]
    return [good[i] for i in np.linspace(0, len(good) - 1, min(most, len(good))).astype(int)]
