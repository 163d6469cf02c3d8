"""Exchanges arrays with the other environment in npz files. Items are rows of the catalogue on both sides.

split.npz    platform (N,); user, item (n,) the training events, each user's oldest first;
             for valid and test: `_case`, `_item` (m,) the events of their inputs, oldest first; `_target` (cases,)
MODEL.npz    users (cases, D) vectors of the test cases, items (N, D), known (N,) whether the model has an item at all
"""

from pathlib import Path

import numpy as np

from training.evaluate import Score
from training.log import EventLog, spans
from training.splits import Cases, Split

UNKNOWN_SCORE = -1e30
"""Items unknown to a model rank last, in the order of the catalogue."""


def write_split(log: EventLog, split: Split, valid: Cases, path: Path) -> None:
    """Write the split, with some of its validation cases, as arrays."""
    at = spans(split.begin, split.end)
    arrays = {
        "platform": log.catalogue.platform,
        "user": np.repeat(np.arange(len(log.users)), split.end - split.begin),
        "item": log.items[at],
    }
    for name, some in (("valid", valid), ("test", split.test)):
        arrays[f"{name}_case"] = np.repeat(np.arange(len(some)), some.end - some.begin)
        arrays[f"{name}_item"] = log.items[spans(some.begin, some.end)]
        arrays[f"{name}_target"] = log.items[some.target]
    np.savez(path, **arrays)


def read_scores(path: Path, test: Cases) -> Score:
    """Read a model's vectors as a score for evaluation. The score has the test cases only."""
    stored = np.load(path)
    users, items, known = stored["users"], stored["items"], stored["known"]
    row = {int(t): i for i, t in enumerate(test.target)}

    def score(log: EventLog, some: Cases) -> np.ndarray:
        mine = users[[row[int(t)] for t in some.target]]
        return np.where(known, mine @ items.T, UNKNOWN_SCORE)

    return score
