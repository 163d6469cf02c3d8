"""Every arriving event is first a test of the profile before it: does the item acted on stand among the first, between others of its platform?

A hit: the item is among the FIRST of itself, SAMPLED items drawn evenly and POPULAR recently acted-on ones, by the dot product. Hit rates among a few
items are no hit rates of a whole catalogue, and do not even keep its order (Krichene and Rendle, KDD 2020): they compare encoders on the same events,
and one encoder with itself over time.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from encoder.base import Encoder
from encoder.features import UNKNOWN, ItemTable, featurize, fitted
from schemas.events import BEHAVIOR_CODE
from schemas.profiles import Profile, decode_profile, unpack_vector
from schemas.windows import DTYPE, Policy, newest_ms, rows_of
from streams.monitoring.drift import Drift
from streams.monitoring.metrics import Metrics
from streams.releases.canary_rules import Sums, Trial
from streams.releases.routing import Current, Lineup
from streams.state.item_store import ItemStore
from streams.state.tablet import Tablet

log = logging.getLogger("currents.observing")
FIRST, SAMPLED, POPULAR = 10, 60, 39
RECENT = 5_000  # actions of a platform that say what is popular
LEFT_OUT = [BEHAVIOR_CODE["hide"], BEHAVIOR_CODE["unknown"]]
TIMED, TIMED_S = 64, 0.025  # windows on which both encoders are timed, so many or for so long each
SPARED = 40  # times as long as a timing took there is none: it costs 2.5 % of the encoding thread
MOST_TIMED = 10_000  # batches of a trial


class Case(NamedTuple):
    """One event, and what was there before it."""

    user: bytes
    platform: int
    target: int
    """Row of the item table."""
    window: bytes
    profile: bytes | None


class Observer:
    """Call it on the encoding thread. `per_s`: events a second and worker that are looked at, so that it costs the encoder little."""

    def __init__(
        self, store: ItemStore, lineup: Current, policy: Policy, names: dict[int, str], metrics: Metrics, per_s: float, drift: Drift | None = None
    ) -> None:
        self._store, self._lineup, self._policy, self._names, self._metrics, self._per_s = store, lineup, policy, names, metrics, per_s
        self._drift = drift
        self._recent: dict[int, deque[int]] = {}
        self._random = np.random.default_rng()
        self._allowance, self._at_ms = 0.0, 0
        self._timed, self._timed_at = TIMED, 0.0
        self.trial: Trial | None = None

    def cases(
        self, tablet: Tablet, users: Sequence[bytes], before: Sequence[bytes | None], rows: Sequence[Sequence[bytes]], now_ms: int
    ) -> list[Case]:
        """Some of a batch's users whose newest event is news: later than all before, on a known item that they had not acted on."""
        table = self._store.table
        last = np.frombuffer(b"".join(max(r, key=newest_ms) for r in rows), DTYPE)
        items = table.index(last["item_key"])
        if self._drift is not None:
            for code in np.unique(last["platform"]).tolist():
                mine = last["platform"] == code
                self._drift.events(self._names[code], last["behavior"][mine], items[mine] == UNKNOWN)
        good = (items != UNKNOWN) & ~np.isin(last["behavior"], LEFT_OUT)
        for platform, item in zip(last["platform"][good].tolist(), items[good].tolist(), strict=True):
            self._recent.setdefault(platform, deque(maxlen=RECENT)).append(item)
        self._allowance = min(self._per_s, self._allowance + self._per_s * max(0, now_ms - self._at_ms) / 1000)
        self._at_ms = now_ms
        found = list[Case]()
        for i in self._random.permutation(np.flatnonzero(good)):
            if self._allowance < 1:
                break
            window = before[i]
            if not window or len(window) < 2 or newest_ms(window) >= last["ts_ms"][i] or last["item_key"][i] in rows_of(window)["item_key"]:
                continue
            found.append(Case(users[i], int(last["platform"][i]), int(items[i]), window, tablet.profile(users[i])))
            self._allowance -= 1
        return found

    def measure(self, cases: Sequence[Case]) -> None:
        """Count hits of the profiles that were there, and of both encoders while there is a candidate. Raises nothing: nobody waits for it."""
        try:
            lineup = self._lineup()
            among = [self._among(case) for case in cases]
            self._profiles(lineup, cases, among)
            if lineup.candidate is not None:
                self._pairs(lineup, lineup.candidate, cases, among)
        except Exception as error:  # a measurement must stop nobody
            log.error("not measured: %s: %s", type(error).__name__, error)

    def _among(self, case: Case) -> np.ndarray:
        """(n,) rows of other items of the target's platform, none of them twice."""
        mine, recent = self._store.platform_rows[self._names[case.platform]], self._recent[case.platform]
        seen = self._store.table.index(rows_of(case.window)["item_key"])
        some = [mine[i] for i in self._random.integers(0, len(mine), SAMPLED)]
        popular = [recent[i] for i in self._random.integers(0, len(recent), POPULAR)]
        rows = np.unique(np.array([*some, *popular]))
        others: np.ndarray = rows[(rows != case.target) & ~np.isin(rows, seen)]
        return others

    def _profiles(self, lineup: Lineup, cases: Sequence[Case], among: Sequence[np.ndarray]) -> None:
        seen: dict[Encoder, list[tuple[bytes, np.ndarray]]] = {}
        for case, others in zip(cases, among, strict=True):
            profile = _decoded(case.profile)
            if profile is None or (encoder := lineup.of_version(profile.encoder_version, profile.space_id)) is None or encoder.dims != profile.dims:
                continue
            labels, vector = (self._names[case.platform], profile.encoder_version), unpack_vector(profile.vector)
            self._metrics.live_tests.labels(*labels).inc()
            self._metrics.live_hits.labels(*labels).inc(hit(vector, items_of(encoder, self._store.table), case.target, others))
            seen.setdefault(encoder, []).append((case.user, vector))
        if self._drift is not None:
            for encoder, made in seen.items():
                users, vectors = zip(*made, strict=True)
                self._drift.vectors(encoder.version, users, np.array(vectors), items_of(encoder, self._store.table))

    def _pairs(self, lineup: Lineup, candidate: Encoder, cases: Sequence[Case], among: Sequence[np.ndarray]) -> None:
        trial, table = self._trial(lineup, candidate), self._store.table
        features = featurize([c.window for c in cases], table, self._policy.most)
        hits = []
        for encoder in (lineup.serving, candidate):
            users, items = encoder.encode(fitted(features, encoder.max_len, self._policy), table), items_of(encoder, table)
            hits.append([hit(u, items, c.target, others) for u, c, others in zip(users, cases, among, strict=True)])
        for case, served, tried in zip(cases, *hits, strict=True):
            trial.whole.add(served, tried)
            trial.platforms.setdefault(self._names[case.platform], Sums()).add(served, tried)

    def due(self) -> bool:
        """Whether both encoders are to be timed on a batch now; not again before they were."""
        if self._lineup().candidate is None or time.perf_counter() < self._timed_at:
            return False
        self._timed_at = math.inf
        return True

    def time(self, windows: Sequence[bytes]) -> None:
        """By how much later a batch would have been with the candidate alone. Raises nothing."""
        began = time.perf_counter()
        try:
            lineup = self._lineup()
            if lineup.candidate is not None and windows:
                self._time(lineup, lineup.candidate, windows)
        except Exception as error:  # a measurement must stop nobody
            log.error("not timed: %s: %s", type(error).__name__, error)
        now = time.perf_counter()
        self._timed_at = now + SPARED * (now - began)

    def _time(self, lineup: Lineup, candidate: Encoder, windows: Sequence[bytes]) -> None:
        trial, table, took = self._trial(lineup, candidate), self._store.table, dict[Encoder, float]()
        if len(trial.delays) >= MOST_TIMED:
            return
        features = featurize(windows[: self._timed], table, self._policy.most)
        n = len(features.lengths)
        pair = (lineup.serving, candidate) if len(trial.delays) % 2 else (candidate, lineup.serving)  # whoever is first finds cold caches
        for encoder in pair:
            began = time.perf_counter()
            encoder.encode(fitted(features, encoder.max_len, self._policy), table)
            took[encoder] = time.perf_counter() - began
        trial.delays.append(1000 * (took[candidate] - took[lineup.serving]) * len(windows) / n)
        self._timed = min(TIMED, max(1, int(n * TIMED_S / max(took.values()))))

    def failed(self) -> None:
        """The candidate could not encode a batch."""
        lineup = self._lineup()
        if lineup.candidate is not None:
            self._trial(lineup, lineup.candidate).failures += 1

    def _trial(self, lineup: Lineup, candidate: Encoder) -> Trial:
        """The figures of this pair; others begin anew."""
        names = lineup.serving.version, candidate.version
        if self.trial is None or (self.trial.served, self.trial.tried) != names:
            self.trial = Trial(*names)
        return self.trial


def _decoded(profile: bytes | None) -> Profile | None:
    try:
        return decode_profile(profile) if profile else None
    except ValueError:  # its interests: a restore looks at all but these
        return None


def items_of(encoder: Encoder, table: ItemTable) -> np.ndarray:
    """(N, dims) all items in an encoder's space."""
    return table.vectors if encoder.projected is None else encoder.projected.of(table)


def hit(user: np.ndarray, items: np.ndarray, target: int, others: np.ndarray) -> bool:
    """Whether the target is among the FIRST. Ties count against it: a vector of zeros hits nothing, as long as there are others enough."""
    return bool((items[others] @ user >= items[target] @ user).sum() < FIRST)
