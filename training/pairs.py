"""Pairs for fine-tuning a tower: an item that a user acted on, and one that the same user acted on soon after. Nothing held out is in any.

Shape letters: P pairs, n pairs of a step, N rows of the catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from encoder.features import UNKNOWN
from schemas.events import BEHAVIOR_CODE
from training.log import EventLog
from training.splits import DataError, Split

FEWEST = 100
HIDE = BEHAVIOR_CODE["hide"]


@dataclass(frozen=True)
class Pairs:
    """Catalogue rows of P pairs."""

    first: np.ndarray
    """(P,) the earlier item."""
    second: np.ndarray
    """(P,) the later item."""
    log_q: tuple[np.ndarray, np.ndarray]
    """(N,), (N,) log of each item's share of first and of second, -inf for none."""
    platform: np.ndarray
    """(N,) platform code of a catalogue row."""

    def __len__(self) -> int:
        return len(self.first)


def event_pairs(log: EventLog, split: Split, ahead: int, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the log (P,), (P,): a training event, and a training event of the same user that is strictly later and at most `ahead` events on.

    No event that hides something, none on an item that is not `usable` (N,), and no two on one item.
    """
    ts = log.rows["ts_ms"]
    good = split.trained(len(log.rows)) & usable[log.items] & (log.items != UNKNOWN) & (log.rows["behavior"] != HIDE)
    end = np.repeat(split.end, np.diff(log.bounds))  # of the event's user
    at = np.flatnonzero(good)
    firsts, seconds = list[np.ndarray](), list[np.ndarray]()
    for k in range(1, ahead + 1):
        a = at[at + k < end[at]]
        b = a + k
        a, b = a[kept := good[b] & (ts[b] > ts[a]) & (log.items[a] != log.items[b])], b[kept]
        firsts.append(a)
        seconds.append(b)
    return np.concatenate(firsts), np.concatenate(seconds)


def pairs(log: EventLog, split: Split, ahead: int, texts: Sequence[str]) -> Pairs:
    """All pairs of items that have a text. Raises DataError for too few."""
    a, b = event_pairs(log, split, ahead, np.array([bool(t.strip()) for t in texts]))
    if len(a) < FEWEST:
        raise DataError(f"too few events: {len(a)} pairs of a user's training events within {ahead} events, want at least {FEWEST}")
    first, second = log.items[a], log.items[b]
    with np.errstate(divide="ignore"):
        share = [np.log(np.bincount(items, minlength=log.catalogue.size) / len(items)) for items in (first, second)]
    return Pairs(first, second, (share[0], share[1]), log.catalogue.platform)


@dataclass(frozen=True)
class Step:
    """What one direction of a step's loss needs: row i is to find target i among the targets of all rows."""

    rows: np.ndarray
    """(n,) catalogue rows that are given."""
    targets: np.ndarray
    """(n,) catalogue rows that are to be found."""
    log_expected: np.ndarray
    """(n,) log of how often target j is expected among the n - 1 negatives of a row."""
    left_out: np.ndarray
    """(n, n) targets that are no negatives of a row: its own target or item again, and items of another platform, which ranking never mixes."""


def steps(data: Pairs, which: np.ndarray, symmetric: bool, logq: bool) -> list[Step]:
    """The directions of a step with the pairs `which` (n,)."""
    first, second = data.first[which], data.second[which]
    out = []
    for rows, targets, log_q in ((first, second, data.log_q[1]), (second, first, data.log_q[0]))[: 1 + symmetric]:
        expected = log_q[targets] + np.log(len(which) - 1) if logq else np.zeros(len(which))
        left_out = (targets[None] == targets[:, None]) | (targets[None] == rows[:, None])
        left_out |= data.platform[targets][None] != data.platform[targets][:, None]
        out.append(Step(rows, targets, expected.astype(np.float32), left_out))
    return out
