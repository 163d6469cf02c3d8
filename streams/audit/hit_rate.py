"""How good the live vectors are on what just happened: everybody's newest item, ranked by what was known before it."""

from collections.abc import Sequence

import numpy as np

from encoder.base import Encoder
from encoder.features import UNKNOWN, ItemTable, featurize
from schemas.windows import ROW_BYTES, rows_of

FIRST = 10


def hits(encoder: Encoder, table: ItemTable, platform: np.ndarray, windows: Sequence[bytes]) -> np.ndarray:
    """(B,) whether the item of each window's newest event is among the FIRST that the events before it rank highest.

    platform (N,): code of the platform of each row of the table, 0 for none. Ranked are all items of the newest event's platform but those of the
    events before it; ties keep the order of the table, so that a vector of zeros is no hit. Windows are of at least two events, the newest of them on
    a known item.
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
    """Up to `most` of the windows that `hits` can take, spread evenly."""
    good = [w for w in windows if len(w) > 2 * ROW_BYTES and table.index(rows_of(w)["item_key"][-1:])[0] != UNKNOWN]
    return [good[i] for i in np.linspace(0, len(good) - 1, min(most, len(good))).astype(int)]
