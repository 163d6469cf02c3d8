"""Alarms when what comes in, or what goes out, is no longer distributed as it was.

What is watched is counted in bins: of a platform's events which behavior they are of, whether their item is known, whether a record became a dead
letter; of an encoder's vectors their length, how near they are to their mean, which items they rank first. The counts of the last window stand
against those of the time before, which fade by half every `reference_h`. Their distance is the population stability index,
PSI = Σ (p - q) ln(p / q), whose usual reading is: above .2 the population has changed (Siddiqi, Credit Risk Scorecards, 2006). With few events
chance alone makes it large: without any change it is about (1/n + 1/m) times a chi-square of k - 1 degrees (Yurdakul and Naranjo, Statistical
properties of the population stability index, Journal of Risk Model Validation 14(4), 2020). An alarm wants more than both.
"""

import logging
import threading
import time
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from schemas.events import BEHAVIORS

log = logging.getLogger("currents.drift")
PARTS = 5  # of a window: with every one that is over the oldest goes into the reference
BUCKETS = 16  # of items that are ranked first
RANKED = 5_000  # items among which the first is looked for
NEAR = np.linspace(-1, 1, 17)[1:-1]  # edges of the cosine with the mean


class Watch:
    """Counts in bins, of the last window and of the time before."""

    def __init__(self, bins: int) -> None:
        self._parts = [np.zeros(bins) for _ in range(PARTS)]
        self.reference = np.zeros(bins)
        self.alarm = False

    @property
    def window(self) -> np.ndarray:
        """(bins,) counts of the last window."""
        total: np.ndarray = np.sum(self._parts, axis=0)
        return total

    def add(self, bins: np.ndarray) -> None:
        """(n,) bins of what came."""
        self._parts[-1] += np.bincount(bins, minlength=len(self.reference))

    def turn(self, fade: float) -> None:
        """A part of the window is over. What lasts becomes what is usual, and an alarm about it ends."""
        gone = self._parts.pop(0)
        self._parts.append(np.zeros_like(gone))
        self.reference = self.reference * fade + gone

    def judge(self, least: int, bound: float, alpha: float) -> float:
        """PSI of window and reference, and `alarm`; 0 while one of them has fewer than `least` counts."""
        window = self.window
        n, m = window.sum(), self.reference.sum()
        if min(n, m) < least:
            self.alarm = False
            return 0.0
        found = psi(window, self.reference)
        chance = (1 / n + 1 / m) * chi_square(max(1, int(((window + self.reference) > 0).sum()) - 1), alpha)
        self.alarm = found > max(bound, chance)
        return found


def psi(window: np.ndarray, reference: np.ndarray) -> float:
    """(bins,) counts each -> the population stability index; half a count is added to every bin that either has, for the logarithm."""
    some = (window + reference) > 0
    p, q = window[some] + 0.5, reference[some] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def chi_square(degrees: int, alpha: float) -> float:
    """Upper alpha quantile, by the cube-root normal of Wilson and Hilferty (PNAS 17, 1931)."""
    share = 2 / (9 * degrees)
    return float(degrees * (1 - share + NormalDist().inv_cdf(1 - alpha) * share**0.5) ** 3)


class Drift:
    """All watches of a worker. `told` is called with (what, of whom, PSI, alarm) of each whenever a part of the window is over."""

    def __init__(
        self,
        window_s: float,
        reference_h: float,
        bound: float,
        alpha: float,
        least: int,
        told: Callable[[str, str, float, bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every, self._fade = window_s / PARTS, 0.5 ** (window_s / PARTS / (3600 * reference_h))
        self._bound, self._alpha, self._least, self._told, self._clock = bound, alpha, least, told, clock
        self._watches: dict[tuple[str, str], Watch] = {}
        self._mean: dict[str, np.ndarray] = {}
        self._next = clock() + self._every
        self._lock = threading.Lock()  # records come from the event loop, all else from the encoding thread

    def alarms(self) -> list[str]:
        """What there is an alarm about, in words."""
        return [f"{what} of {of}" for (what, of), watch in list(self._watches.items()) if watch.alarm]

    def events(self, platform: str, behaviors: np.ndarray, unknown: np.ndarray) -> None:
        """(n,) behaviors of events, and whether their items are unknown."""
        self._add("behaviors", platform, behaviors, len(BEHAVIORS))
        self._add("unknown-items", platform, unknown.astype(np.int64), 2)

    def records(self, platform: str, good: int, dead: int) -> None:
        """Records of a platform that were used, and that became dead letters: a mapping that no longer fits shows here."""
        self._add("dead-letters", platform, np.repeat((0, 1), (good, dead)), 2)

    def vectors(self, version: str, vectors: np.ndarray, items: np.ndarray) -> None:
        """(n, dims) vectors that an encoder made, and (N, dims) items in its space."""
        length = np.linalg.norm(vectors, axis=1)
        self._add("norm", version, np.where(length == 0, 0, np.where(np.abs(length - 1) < 0.01, 1, 2)), 3)
        some = vectors[length > 0]
        if not len(some):
            return
        mean = self._mean.setdefault(version, some.mean(0))  # of the first ones: as good as any, for it stays
        cosine = some @ mean / max(float(np.linalg.norm(mean)), 1e-9)
        self._add("spread", version, np.searchsorted(NEAR, cosine), len(NEAR) + 1)
        few = items[1:RANKED]
        if len(few):
            self._add("coverage", version, (few @ some.T).argmax(0) % BUCKETS, BUCKETS)

    def _add(self, what: str, of: str, bins: np.ndarray, n: int) -> None:
        with self._lock:
            self._turn()
            if len(bins):
                self._watches.setdefault((what, of), Watch(n)).add(bins)

    def _turn(self) -> None:
        if (now := self._clock()) < self._next:
            return
        turns = min(PARTS, 1 + int((now - self._next) / self._every))
        self._next = now + self._every
        for (what, of), watch in list(self._watches.items()):
            before = watch.alarm
            found = watch.judge(self._least, self._bound, self._alpha)
            if watch.alarm != before:
                log.warning("%s of %s: %s (PSI %.2f)", what, of, "not as it was" if watch.alarm else "as it was, or too little to say", found)
            self._told(what, of, found, watch.alarm)
            for _ in range(turns):
                watch.turn(self._fade)
