"""Splits of a log into training, validation and test. No input of an example holds anything at or after its target's time."""

from dataclasses import dataclass

import numpy as np

from encoder.features import UNKNOWN
from training.log import EventLog, event_log, spans

TOO_FEW = 20
VALIDATION_CASES = 2000  # ranked after every epoch, at most


class DataError(ValueError):
    """Data that cannot be trained on or evaluated; the message gives the expected and the found."""


@dataclass(frozen=True)
class Cases:
    """Held-out next actions. The input of case i is log.rows[begin[i]:end[i]], its target the event log.rows[target[i]]."""

    begin: np.ndarray
    end: np.ndarray
    target: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def take(self, which: np.ndarray) -> "Cases":
        """Some of the cases, by mask or index."""
        return Cases(self.begin[which], self.end[which], self.target[which])

    def at_most(self, n: int, seed: int) -> "Cases":
        """All of the cases, or n of them at random, in their order."""
        if len(self) <= n:
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)))


@dataclass(frozen=True)
class Split:
    """Train rows of user u: log.rows[begin[u]:end[u]]."""

    begin: np.ndarray
    end: np.ndarray
    valid: Cases
    test: Cases

    def trained(self, n: int) -> np.ndarray:
        """(n,) whether each row of the log is trained on."""
        delta = np.zeros(n + 1, np.int64)
        np.add.at(delta, self.begin, 1)
        np.add.at(delta, self.end, -1)
        return delta.cumsum()[:n] > 0


def cases(log: EventLog, targets: np.ndarray) -> Cases:
    """Cases for target rows: the input is all of the user's events before the target's time. Targets without input or vector are left out."""
    begin = log.starts[targets]
    ts, end = log.rows["ts_ms"], targets.copy()
    while (tied := (end > begin) & (ts[end - 1] >= ts[targets])).any():  # events of the very time of the target are no input
        end[tied] -= 1
    good = (end > begin) & (log.items[targets] != UNKNOWN)
    return Cases(begin[good], end[good], targets[good])


def elsewhere(log: EventLog, some: Cases) -> tuple[EventLog, Cases]:
    """The targets asked of other platforms alone: a log whose users are the cases, without their events on the target's platform, and its cases.

    Cases without events on another platform are left out.
    """
    at, owner = spans(some.begin, some.end), np.repeat(np.arange(len(some)), some.end - some.begin)
    keep = log.rows["platform"][at] != log.rows["platform"][some.target][owner]
    rows, users = np.concatenate([at[keep], some.target]), np.concatenate([owner[keep], np.arange(len(some))])
    other = event_log([f"{u:09d}" for u in users.tolist()], log.rows[rows], log.catalogue)
    return other, cases(other, other.bounds[1:] - 1)


def leave_one_out(log: EventLog) -> Split:
    """Each user's last event is the test, the one before it the validation. Users of fewer than three events are trained on only."""
    begin, end = log.bounds[:-1], log.bounds[1:]
    enough = end - begin >= 3
    return enough_cases(Split(begin, np.where(enough, end - 2, end), cases(log, end[enough] - 2), cases(log, end[enough] - 1)), log)


def by_time(log: EventLog, valid_share: float, test_share: float, successive: bool = False) -> Split:
    """The newest events are the test, those before them the validation; each user's last event of a part is its target, or every one of them."""
    ts = log.rows["ts_ms"]
    if not len(ts):
        raise DataError("no events at all")
    test_at, valid_at = np.quantile(ts, [1 - test_share, 1 - test_share - valid_share], method="higher")
    end = log.bounds[:-1] + _count(log, ts < valid_at)

    def held_out(low: float, high: float) -> Cases:
        inside = np.flatnonzero((ts >= low) & (ts < high))
        if not successive:
            inside = inside[np.append(np.diff(log.starts[inside]) != 0, True)] if len(inside) else inside
        return cases(log, inside)

    return enough_cases(Split(log.bounds[:-1], end, held_out(valid_at, test_at), held_out(test_at, np.inf)), log)


def held_out_users(log: EventLog, valid: np.ndarray, test: np.ndarray) -> Split:
    """The last event of some users (masks over U) is validation or test; everything else is trained on."""
    begin, end = log.bounds[:-1], log.bounds[1:]
    return Split(begin, end - (valid | test), cases(log, end[valid] - 1), cases(log, end[test] - 1))


def _count(log: EventLog, mask: np.ndarray) -> np.ndarray:
    """(U,) how many rows of each user are in a mask."""
    sums = np.concatenate([[0], mask.cumsum()])
    return np.asarray(sums[log.bounds[1:]] - sums[log.bounds[:-1]])


def enough_cases(split: Split, log: EventLog) -> Split:
    """Returns the split. Raises DataError for too few training events, validation targets or test targets."""
    trained, nowhere = int((split.end - split.begin).clip(min=0).sum()), int((log.items == UNKNOWN).sum())
    of = f"{len(log.rows)} events in all" + (f", {nowhere} of them on items that are not among the items" if nowhere else "")
    for what, n in (("training events", trained), ("validation targets", len(split.valid)), ("test targets", len(split.test))):
        if n < TOO_FEW:
            raise DataError(f"too few events: {n} {what} of {of}; want at least {TOO_FEW}")
    return split
