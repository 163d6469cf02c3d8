"""When a candidate is promoted or rolled back, and what arriving events say of encoders."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoder.base import Encoder
from encoder.baseline import Baseline
from encoder.features import Features, ItemTable
from encoder.towers import load_tower
from schemas.events import BEHAVIOR_CODE
from schemas.items import Item, item_key
from schemas.releases import Rules
from schemas.windows import ROW, VERSION, Policy
from streams.monitoring.metrics import Metrics
from streams.profile import profiler as profiling
from streams.profile.encoder_guard import EncoderDown
from streams.profile.portrait import Style, interests
from streams.profile.profiler import Profiler
from streams.releases.canary_rules import Sums, Trial, decide, figures, interval, slower
from streams.releases.online_eval import TIMED, Observer, hit
from streams.releases.routing import Lineup
from streams.state.item_store import ItemStore, item_rows
from streams.state.tablet import Tablet

RULES = Rules(alpha=0.05, tolerated=0.02, least=200, most=5_000)
PROMPT = (1.0,) * RULES.timed


def trial(events: int, served: int, tried: int, differing: int, failures: int = 0, later: Sequence[float] = PROMPT, **platforms: Sums) -> Trial:
    return Trial("v1", "v2", Sums(events, served, tried, differing), platforms, failures, list(later))


CASES = [
    (trial(100, 10, 50, 40), "watch", "100 of at least 200"),
    (trial(1000, 300, 300, 40), "promote", "hit rate"),
    (trial(1000, 300, 450, 300), "promote", "hit rate"),
    (trial(1000, 450, 300, 300), "roll back", "worse: hit rate"),
    (trial(1000, 300, 290, 300), "watch", "hit rate"),
    (trial(5000, 1500, 1450, 2500), "roll back", "not known to lose less"),
    (trial(10, 5, 5, 0, failures=4), "roll back", "could not encode 4"),
    (trial(1000, 450, 500, 300, shop=Sums(400, 200, 100, 150), news=Sums(600, 250, 400, 150)), "roll back", "worse on shop"),
    (trial(1000, 450, 500, 300, shop=Sums(20, 20, 0, 20), news=Sums(980, 430, 500, 280)), "promote", "hit rate"),
    (trial(10, 5, 5, 0, later=(300.0,) * 10), "roll back", "slower: profiles 300 ms later than with v1 (median of 10 batches), 100 ms are tolerated"),
    (trial(1000, 300, 450, 300, later=(300.0,) * 10), "roll back", "slower"),
    (trial(1000, 300, 450, 300, later=(99.0,) * 90 + (9000.0,) * 10), "promote", "hit rate"),
    (trial(1000, 300, 450, 300, later=(1.0,) * 9), "watch", "9 of at least 10 timed batches"),
]


@pytest.mark.parametrize(("seen", "action", "says"), CASES)
def test_decide(seen: Trial, action: str, says: str) -> None:
    """What fails, is worse somewhere, or stays unclear goes; what is not worse by more than is tolerated is promoted; else one watches on."""
    verdict = decide(seen, RULES)
    assert verdict.action == action
    assert says in verdict.why


def test_interval_narrows() -> None:
    """The interval holds the mean, and narrows with events; without events it says nothing."""
    assert interval(Sums(), 0.05, 500) == (-1.0, 1.0)
    widths = []
    for n in (100, 1_000, 10_000, 100_000):
        low, high = interval(Sums(n, n // 4, n * 3 // 10, n // 5), 0.05, 500)
        assert low < 0.05 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    low, high = interval(Sums(300, 100, 100, 0), 0.05, 500)
    assert low < 0 < high


def test_looking_always_is_allowed() -> None:
    """Looked at after every event, the interval misses the truth in no more runs than alpha says; a fixed-size interval would in most."""
    r, runs, n, alpha = np.random.default_rng(5), 400, 4_000, 0.1
    difference = r.choice([-1, 0, 1], size=(runs, n), p=[0.15, 0.7, 0.15])
    sums, squares, count = difference.cumsum(1), (difference**2).cumsum(1), np.arange(1, n + 1)
    missed = np.zeros(runs, bool)
    fixed = np.zeros(runs, bool)
    for k in range(199, n, 20):
        deviation = np.sqrt(squares[:, k] / count[k] - (sums[:, k] / count[k]) ** 2)
        fixed |= np.abs(sums[:, k] / count[k]) > 1.645 * deviation / np.sqrt(count[k])
        for run in np.flatnonzero(~missed):
            low, high = interval(Sums(int(count[k]), 0, int(sums[run, k]), int(squares[run, k])), alpha, 500)
            missed[run] = not low <= 0 <= high
    assert missed.mean() <= alpha
    assert fixed.mean() > 3 * alpha


def test_slower() -> None:
    """Looked at after every batch, a candidate that is not slower is taken for it in no more runs than alpha says; one that is, soon and always."""
    r, runs, n, alpha = np.random.default_rng(6), 200, 300, 0.05
    stalls = r.exponential(500, (runs, n)) * (r.random((runs, n)) < 0.05)  # of the machine, at either encoder's turn
    noise = r.normal(0, 30, (runs, n)) + stalls * r.choice([-1, 1], (runs, n))
    wrong = [any(slower(list(run[:k]), 100.0, alpha) for k in range(1, n)) for run in 100 + noise]
    assert np.mean(wrong) <= alpha
    found = [next(k for k in range(1, n) if slower(list(run[:k]), 100.0, alpha)) for run in 160 + noise]
    assert max(found) < 60
    assert not slower([], 100.0, alpha)


def test_figures() -> None:
    """The record of a trial's end has both hit rates, the bounds, the age and the failures."""
    assert "online_later_ms" not in figures(trial(1000, 300, 450, 300, later=()), RULES)
    found = figures(trial(1000, 300, 450, 300, 2, (10.0, 20.0, 90.0)), RULES)
    assert (found["online_later_ms"], found["online_timed_batches"], found["online_failures"]) == (20.0, 3, 2)
    assert (found["online_hit_rate"], found["online_hit_rate_serving"], found["online_events"]) == (0.45, 0.3, 1000)
    assert found["online_low"] < 0.15 < found["online_high"]


def test_hit() -> None:
    """A hit is among the first ten; ties count against it, so that a vector of zeros hits nothing."""
    items = np.eye(30, dtype=np.float32)
    others = np.arange(1, 30)
    assert hit(items[0], items, 0, others)
    assert not hit(np.zeros(30, np.float32), items, 0, others)
    user = np.linspace(1, 0, 30).astype(np.float32)
    assert hit(user, items, 9, np.delete(np.arange(30), 9))
    assert not hit(user, items, 10, np.delete(np.arange(30), 10))


class Blind:
    """An encoder whose vectors say nothing of anybody."""

    version, space_id, dims, max_len, projected = "blind", "b", 8, 8, None

    def encode(self, features: object, table: object) -> np.ndarray:
        raise AssertionError

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return vectors


class Slow(Baseline):
    """The baseline, which takes its time for every user."""

    PAUSE_S = 0.01

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        self.asked = len(features.lengths)
        time.sleep(self.PAUSE_S * self.asked)
        return super().encode(features, table)


def test_timing(tmp_path: Path) -> None:
    """Both encoders are timed on a part of a batch, for the whole of it; a slow one on fewer windows next time; and not again at once."""
    store = ItemStore(tmp_path / "items", "s", 8)
    lineup = Lineup(Baseline(8, "s"))
    observer = Observer(store, lambda: lineup, Policy(64), {1: "shop"}, Metrics(), 20)
    windows = [VERSION + ROW.pack(1, n, 1, 1, 1, 0, 0.0) for n in range(1000)]
    assert not observer.due()
    slow = Slow(8, "other", half_life=1.0)
    lineup = Lineup(lineup.serving, slow, 0.1)
    assert observer.due()
    assert not observer.due()  # before it was timed
    observer.time(windows)
    assert observer.trial is not None
    assert slow.asked == TIMED
    assert observer.trial.delays[0] > 1000 * Slow.PAUSE_S * 1000 * 0.5
    assert not observer.due()  # it would take too much of the thread
    observer.time(windows)
    assert slow.asked < TIMED
    observer.time(windows[:1])
    assert slow.asked == 1
    assert len(observer.trial.delays) == 3
    lineup = Lineup(lineup.serving, Blind(), 0.1)
    observer.time(windows)  # a candidate that fails stops nobody
    assert observer.trial.delays == []
    store.close()


def test_portraits_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Portraits that are made while vectors are change nothing, and none is being made any more when the encoder has failed."""
    store = ItemStore(tmp_path / "items", "space", 8)
    store.apply([], ("items", 0), 0)
    style = Style(3, 1, 1e9, np.ones(256), {1: "shop"})
    users, windows = [b"u", b"v"], [VERSION + ROW.pack(1, 1, item_key("shop:a"), 1, 0, 0, 0.0)] * 2
    lineup, ended = Lineup(Baseline(8, "space")), list[bool]()

    def slow(*arguments: Any) -> list[bytes]:
        time.sleep(0.05)
        ended.append(True)
        return interests(*arguments)

    monkeypatch.setattr(profiling, "interests", slow)
    with ThreadPoolExecutor(1) as pool:
        alone, beside = (Profiler(lambda: lineup, store, style, Policy(64), beside=p)(users, windows, [0, 0], 7) for p in (None, pool))
        assert alone == beside
        lineup = Lineup(Blind())
        with pytest.raises(EncoderDown):
            Profiler(lambda: lineup, store, style, Policy(64), beside=pool)(users, windows, [0, 0], 7)
        assert len(ended) == 3
    store.close()


def test_observing(tmp_path: Path) -> None:
    """News on known items is tested against the profile before it and against both encoders; replays, known items again and hidden ones are not."""
    tower = load_tower("static")
    store = ItemStore(tmp_path / "items", tower.space_id, tower.dims)
    subjects = ("green tea pot", "trail running shoes", "jazz guitar chords", "tomato seedlings", "chess endgame", "oil painting")
    items = [Item(f"shop:{k}-{n}", f"{s} number {n}") for k, s in enumerate(subjects) for n in range(40)]
    store.apply([(k, v) for k, v, _ in item_rows(items, tower, 0)], ("items", 0), 0)
    metrics, names = Metrics(), {1: "shop"}
    good: Encoder = Baseline(tower.dims, tower.space_id)
    lineup = Lineup(good)
    observer = Observer(store, lambda: lineup, Policy(64), names, metrics, 1e6)
    tablet = Tablet(0, tmp_path / "tablet-0")
    style = Style(3, 1, 1e9, np.ones(256), names)
    profiler = Profiler(lambda: lineup, store, style, Policy(64))

    def row(at: int, item: str, behavior: str = "view") -> bytes:
        return ROW.pack(at, at, item_key(item), 1, BEHAVIOR_CODE[behavior], 0, 0.0)

    users = [f"u{n}".encode() for n in range(60)]
    before = [VERSION + b"".join(row(t, f"shop:{n % 6}-{t}") for t in range(1, 6)) for n in range(60)]
    profiles, _ = profiler(users, before, [0] * 60, 0)
    tablet.write(profiles=zip(users, profiles, strict=True))
    news = [[row(9, f"shop:{n % 6}-{20 + n % 7}")] for n in range(60)]
    cases = observer.cases(tablet, users, before, news, 1000)
    assert len(cases) == 60
    for rows in ([row(3, "shop:1-30")], [row(9, "shop:1-3")], [row(9, "shop:none")], [row(9, "shop:1-30", "hide")]):
        assert observer.cases(tablet, users[1:2], before[1:2], [rows], 2000) == []
    assert observer.cases(tablet, users[:1], [None], news[:1], 3000) == []
    observer.measure(cases)
    tests, hits = (metrics.value(f"currents_live_{x}_total", platform="shop", version=good.version) for x in ("tests", "hits"))
    assert tests == 60
    assert hits > 45
    assert observer.trial is None

    other = Baseline(tower.dims, "zero", half_life=1.0)
    other._decay[:] = 0  # sees nothing: every vector is zero
    lineup = Lineup(good, other, 0.0)
    observer.measure(cases)
    assert observer.trial is not None
    seen = observer.trial.whole
    assert (seen.events, seen.tried, seen.served > 45, seen.differing) == (60, 0, True, seen.served)
    assert observer.trial.platforms["shop"] == seen
    slow = Observer(store, lambda: lineup, Policy(64), names, metrics, 5)
    assert len(slow.cases(tablet, users, before, news, 1000)) == 5
    assert len(slow.cases(tablet, users, before, news, 1200)) == 1
    lineup = Lineup(good, Blind(), 0.0)
    observer.measure(cases)  # a candidate that fails stops nobody
    tablet.close()
    store.close()
