"""Alarms when what comes in, or what goes out, is no longer distributed as it was.

What is watched is counted in bins: of a platform's events which behavior they are of, whether their item is known, which optional fields they have,
what their item ids look like; of its records why they became dead letters, or not; of an encoder's vectors their length, how near they are to their
mean, which items they rank first. The counts of the last window stand against those of the time before, which fade by half every `reference_h`. Their
distance is the population stability index, PSI = Σ (p - q) ln(p / q), whose usual reading is: above .2 the population has changed (Siddiqi, Credit
Risk Scorecards, 2006). With few events chance alone makes it large: without any change it is about (1/n + 1/m) times a chi-square of k - 1 degrees
(Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk Model Validation 14(4), 2020). An alarm wants more
than both.

What is rare weighs little in it: dead letters that become 5 % of the records where they were .3 % make .13. So a single share that doubled or halved,
by `share` of all at least, is an alarm too, if a two-proportion z-test, with Bonferroni's correction for the bins, says that it is no chance.
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
PARTS = 5  # of a window: with every one that is over the oldest goes into the reference
BUCKETS = 16  # of items that are ranked first
RANKED = 1_000  # items among which the first is looked for: a few µs
NEAR = np.linspace(-1, 1, 17)[1:-1]  # edges of the cosine with the mean
LONG = (4, 8, 16, 32)  # characters of item ids, up to which their bins go; longer ones are of one more
BINS: dict[str, tuple[str, ...]] = {
    "behaviors": BEHAVIORS,
    "unknown-items": ("known", "unknown"),
    "dead-letters": ("used", *REASONS),
    "fields": ("neither value nor dwell", "value", "dwell", "value and dwell"),
    "item-ids": tuple(f"{kind} {length}" for kind in ("digits", "letters and digits", "other ASCII", "beyond ASCII") for length in (*LONG, "longer")),
    "norm": ("nothing", "1", "another"),
    "spread": tuple(f"up to {edge:.3f}" for edge in (*NEAR, 1)),
    "coverage": tuple(map(str, range(BUCKETS))),
}
"""What is watched -> what its bins are."""
BY_SHARE = frozenset(BINS) - {"spread", "coverage"}
"""Whose bins mean something each."""
_REASON = {reason: n for n, reason in enumerate(BINS["dead-letters"])}


def field_bins(event: Event) -> tuple[int, int]:
    """Bins of an event's optional fields and of its item's id."""
    item = event.item_id
    kind = 3 if not item.isascii() else 0 if item.isdigit() else 1 if item.isalnum() else 2
    length = sum(len(item) > edge for edge in LONG)
    return (event.value is not None) + 2 * (event.dwell_s is not None), kind * (len(LONG) + 1) + length


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

    def judge(self, least: int, bound: float, alpha: float, share: float = np.inf) -> float:
        """PSI of window and reference, and `alarm`; 0 while one of them has fewer than `least` counts."""
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
        """The bin whose share grew most, and that share: before, and now."""
        p, q = (counts / max(counts.sum(), 1) for counts in (self.window, self.reference))
        at = int((p - q).argmax())
        return at, float(q[at]), float(p[at])


def moved(window: np.ndarray, reference: np.ndarray, share: float, alpha: float) -> np.ndarray:
    """(bins,) counts each, some in both -> (bins,) bool: by `share` of all at least, to twice or half of what it was, and not by chance."""
    n, m = window.sum(), reference.sum()
    p, q, pooled = window / n, reference / m, (window + reference) / (n + m)
    low, high = np.minimum(p, q), np.maximum(p, q)
    margin = NormalDist().inv_cdf(1 - alpha / (2 * len(window))) * np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    out: np.ndarray = (high - low >= share) & (high >= 2 * low) & (high - low > margin)
    return out


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
        self._seen: set[tuple[str, bytes]] = set()  # encoders' users of this part of the window
        self._next = clock() + self._every
        self._lock = threading.Lock()  # records come from the event loop, all else from the encoding thread

    def alarms(self) -> list[str]:
        """What there is an alarm about, in words."""
        return [f"{what} of {of}" for (what, of), watch in list(self._watches.items()) if watch.alarm]

    def events(self, platform: str, behaviors: np.ndarray, unknown: np.ndarray) -> None:
        """(n,) behaviors of events, and whether their items are unknown."""
        self._add("behaviors", platform, behaviors)
        self._add("unknown-items", platform, unknown.astype(np.int64))

    def records(self, platform: str, good: int, dead: Sequence[str], field_bins: Sequence[tuple[int, int]]) -> None:
        """Records of a platform that were used, why others became dead letters, and what some events look like: a mapping that no longer fits."""
        self._add("dead-letters", platform, np.array([0] * good + [_REASON[reason] for reason in dead], np.int64))
        if field_bins:
            fields, items = np.array(field_bins).T
            self._add("fields", platform, fields)
            self._add("item-ids", platform, items)

    def vectors(self, version: str, users: Sequence[bytes], vectors: np.ndarray, items: np.ndarray) -> None:
        """(n, dims) vectors that an encoder made, whose they are, and (N, dims) items in its space.

        A user counts once in a part of the window: vectors of one are alike, and many of them would pass for much evidence.
        """
        with self._lock:
            self._turn()
        fresh = {user: n for n, user in enumerate(users) if (version, user) not in self._seen}
        self._seen.update((version, user) for user in fresh)
        vectors = vectors[list(fresh.values())]
        length = np.linalg.norm(vectors, axis=1)
        self._add("norm", version, np.where(length == 0, 0, np.where(np.abs(length - 1) < 0.01, 1, 2)))
        some = vectors[length > 0]
        if not len(some):
            return
        mean = self._mean.setdefault(version, some.mean(0))  # of the first ones: as good as any, for it stays
        cosine = some @ mean / max(float(np.linalg.norm(mean)), 1e-9)
        self._add("spread", version, np.searchsorted(NEAR, cosine))
        few = items[1:RANKED]
        if len(few):
            self._add("coverage", version, np.array([int((few @ vector).argmax()) for vector in some]) % BUCKETS)

    def _add(self, what: str, of: str, bins: np.ndarray) -> None:
        with self._lock:
            self._turn()
            if len(bins):
                self._watches.setdefault((what, of), Watch(len(BINS[what]))).add(bins)

    def _turn(self) -> None:
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
