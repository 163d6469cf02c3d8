"""Raises an alarm when the distribution of the input or of the output changes.

Each watch counts one property in bins. A platform's events: behavior, known or unknown item, optional fields, shape of item ids. Its records:
used, or the reason of the dead letter. An encoder's vectors: norm, cosine with their mean, the item that they rank first.

A watch compares the counts of the last window with the reference, the counts before the window, which decay by half every `reference_h`. The distance
is the population stability index, PSI = Σ (p - q) ln(p / q). By common practice a PSI above .2 means a changed population (Siddiqi, Credit Risk
Scorecards, 2006). With few events chance alone makes the PSI large: without any change it is about (1/n + 1/m) times a chi-square of k - 1 degrees
(Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk Model Validation 14(4), 2020). An alarm needs a PSI
above both bounds.

Rare bins weigh little in the PSI: dead letters that rise from .3 % to 5 % of the records contribute .13. So a single bin raises an alarm too if its
share doubled or halved, changed by at least `share` of the total, and a two-proportion z-test with Bonferroni's correction for the number of bins
rules out chance.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from schemas.events import BEHAVIORS, Event
from schemas.mapping import REASONS

log = logging.getLogger("currents.drift")
PARTS = 5  # of a window; when a part ends, the oldest part moves into the reference
BUCKETS = 16  # bins of the item that a vector ranks first
RANKED = 1_000  # items that are ranked for `coverage`: a few µs
COSINE_EDGES = np.linspace(-1, 1, 17)[1:-1]  # edges of the bins of the cosine with the mean
LENGTH_EDGES = (4, 8, 16, 32)  # upper edges of the bins of item id lengths, characters; longer ids have one more bin
BINS: dict[str, tuple[str, ...]] = {
    "behaviors": BEHAVIORS,
    "unknown-items": ("known", "unknown"),
    "dead-letters": ("used", *REASONS),
    "fields": ("neither value nor dwell", "value", "dwell", "value and dwell"),
    "item-ids": tuple(
        f"{kind} {length}" for kind in ("digits", "letters and digits", "other ASCII", "beyond ASCII") for length in (*LENGTH_EDGES, "longer")
    ),
    "norm": ("nothing", "1", "another"),
    "spread": tuple(f"up to {edge:.3f}" for edge in (*COSINE_EDGES, 1)),
    "coverage": tuple(map(str, range(BUCKETS))),
}
"""Watched property -> names of its bins."""
BY_SHARE = frozenset(BINS) - {"spread", "coverage"}
"""Properties whose single bins have a meaning, so that one bin's share can raise an alarm."""
_REASON = {reason: n for n, reason in enumerate(BINS["dead-letters"])}


def field_bins(event: Event) -> tuple[int, int]:
    """Return an event's bins of `fields` and of `item-ids`."""
    item = event.item_id
    kind = 3 if not item.isascii() else 0 if item.isdigit() else 1 if item.isalnum() else 2
    length = sum(len(item) > edge for edge in LENGTH_EDGES)
    return (event.value is not None) + 2 * (event.dwell_s is not None), kind * (len(LENGTH_EDGES) + 1) + length


class Watch:
    """Owns the counts of one property: those of the last window and the reference."""

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
        """Count (n,) bins."""
        self._parts[-1] += np.bincount(bins, minlength=len(self.reference))

    def turn(self, fade: float) -> None:
        """End a part of the window: the oldest part moves into the reference. A lasting change so becomes the reference, and its alarm ends."""
        gone = self._parts.pop(0)
        self._parts.append(np.zeros_like(gone))
        self.reference = self.reference * fade + gone

    def judge(self, least: int, bound: float, alpha: float, share: float = np.inf) -> float:
        """Return the PSI of window and reference, and set `alarm`. Returns 0 while either has fewer than `least` counts."""
        window = self.window
        n, m = window.sum(), self.reference.sum()
        if min(n, m) < least:
            self.alarm = False
            return 0.0
        found = psi(window, self.reference)
        chance = (1 / n + 1 / m) * chi_square(max(1, int(((window + self.reference) > 0).sum()) - 1), alpha)
        self.alarm = bool(found > max(bound, chance) or moved(window, self.reference, share, alpha).any())
        return found

    def most(self) -> tuple[int, float, float]:
        """Return the bin whose share grew most, its share in the reference, and its share in the window."""
        p, q = (counts / max(counts.sum(), 1) for counts in (self.window, self.reference))
        at = int((p - q).argmax())
        return at, float(q[at]), float(p[at])


def moved(window: np.ndarray, reference: np.ndarray, share: float, alpha: float) -> np.ndarray:
    """(bins,) counts each, neither all zero -> (bins,) bool: the bin's share changed by at least `share`, by a factor of 2 or more, not by chance."""
    n, m = window.sum(), reference.sum()
    p, q, pooled = window / n, reference / m, (window + reference) / (n + m)
    low, high = np.minimum(p, q), np.maximum(p, q)
    margin = NormalDist().inv_cdf(1 - alpha / (2 * len(window))) * np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    out: np.ndarray = (high - low >= share) & (high >= 2 * low) & (high - low > margin)
    return out


def psi(window: np.ndarray, reference: np.ndarray) -> float:
    """(bins,) counts each -> the population stability index. Adds half a count to every bin with a count in either, to avoid infinite logarithms."""
    nonzero = (window + reference) > 0
    p, q = window[nonzero] + 0.5, reference[nonzero] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def chi_square(degrees: int, alpha: float) -> float:
    """Return the upper alpha quantile of the chi-square distribution, by the cube-root approximation of Wilson and Hilferty (PNAS 17, 1931)."""
    share = 2 / (9 * degrees)
    return float(degrees * (1 - share + NormalDist().inv_cdf(1 - alpha) * share**0.5) ** 3)


class Drift:
    """Owns all watches of a worker. Calls `told` with (property, platform or encoder version, PSI, alarm) of each watch when a window's part ends."""

    def __init__(
        self,
        window_s: float,
        reference_h: float,
        bound: float,
        share: float,
        alpha: float,
        least: int,
        told: Callable[[str, str, float, bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every, self._fade = window_s / PARTS, 0.5 ** (window_s / PARTS / (3600 * reference_h))
        self._bound, self._share, self._alpha, self._least, self._told, self._clock = bound, share, alpha, least, told, clock
        self._watches: dict[tuple[str, str], Watch] = {}
        self._mean: dict[str, np.ndarray] = {}
        self._seen: set[tuple[str, bytes]] = set()  # (encoder version, user) counted in this part of the window
        self._next = clock() + self._every
        self._lock = threading.Lock()  # the event loop calls `records`, the encoding thread the other methods

    def alarms(self) -> list[str]:
        """Describe the active alarms."""
        return [f"{what} of {of}" for (what, of), watch in list(self._watches.items()) if watch.alarm]

    def events(self, platform: str, behaviors: np.ndarray, unknown: np.ndarray) -> None:
        """Count events: (n,) behavior codes, (n,) bool whether the item is unknown."""
        self._add("behaviors", platform, behaviors)
        self._add("unknown-items", platform, unknown.astype(np.int64))

    def records(self, platform: str, good: int, dead: Sequence[str], field_bins: Sequence[tuple[int, int]]) -> None:
        """Count a platform's records: `good` used ones, reasons of dead letters, `field_bins` of some events. Changes hint at a stale mapping."""
        self._add("dead-letters", platform, np.array([0] * good + [_REASON[reason] for reason in dead], np.int64))
        if field_bins:
            fields, items = np.array(field_bins).T
            self._add("fields", platform, fields)
            self._add("item-ids", platform, items)

    def vectors(self, version: str, users: Sequence[bytes], vectors: np.ndarray, items: np.ndarray) -> None:
        """Count an encoder's (n, dims) vectors of n users. `items`: (N, dims) item vectors in the encoder's space.

        Each user counts once in a part of the window, because a user's vectors are alike and would overstate the evidence.
        """
        with self._lock:
            self._end_parts()
        fresh = {user: n for n, user in enumerate(users) if (version, user) not in self._seen}
        self._seen.update((version, user) for user in fresh)
        vectors = vectors[list(fresh.values())]
        length = np.linalg.norm(vectors, axis=1)
        self._add("norm", version, np.where(length == 0, 0, np.where(np.abs(length - 1) < 0.01, 1, 2)))
        nonzero = vectors[length > 0]
        if not len(nonzero):
            return
        mean = self._mean.setdefault(version, nonzero.mean(0))  # a fixed direction; the first vectors' mean is as good as any
        cosine = nonzero @ mean / max(float(np.linalg.norm(mean)), 1e-9)
        self._add("spread", version, np.searchsorted(COSINE_EDGES, cosine))
        ranked = items[1:RANKED]
        if len(ranked):
            self._add("coverage", version, np.array([int((ranked @ vector).argmax()) for vector in nonzero]) % BUCKETS)

    def _add(self, what: str, of: str, bins: np.ndarray) -> None:
        with self._lock:
            self._end_parts()
            if len(bins):
                self._watches.setdefault((what, of), Watch(len(BINS[what]))).add(bins)

    def _end_parts(self) -> None:
        if (now := self._clock()) < self._next:
            return
        turns = min(PARTS, 1 + int((now - self._next) / self._every))
        self._next = now + self._every
        for (what, of), watch in list(self._watches.items()):
            before = watch.alarm
            found = watch.judge(self._least, self._bound, self._alpha, self._share if what in BY_SHARE else np.inf)
            if watch.alarm != before:
                at, was, now_is = watch.most()
                said = "not as it was" if watch.alarm else "as it was, or too little to say"
                log.warning("%s of %s: %s (PSI %.2f; %s: %.1f %%, was %.1f %%)", what, of, said, found, BINS[what][at], 100 * now_is, 100 * was)
            self._told(what, of, found, watch.alarm)
            for _ in range(turns):
                watch.turn(self._fade)
        self._seen.clear()
