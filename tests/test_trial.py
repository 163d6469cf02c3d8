"""When a candidate is promoted or rolled back, and what arriving events say of encoders."""

from pathlib import Path

import numpy as np
import pytest

from encoder.baseline import Baseline
from encoder.runtime import Encoder
from encoder.towers import load_tower
from schemas.events import BEHAVIOR_CODE
from schemas.items import Item, item_key
from schemas.windows import ROW, VERSION, Policy
from streams.items import ItemStore, item_rows
from streams.lineup import Lineup
from streams.metrics import Metrics
from streams.observing import Observer, hit
from streams.portrait import Style
from streams.profiler import Profiler
from streams.tablets import Tablet
from streams.trial import Rules, Sums, Trial, decide, figures, interval

RULES = Rules(alpha=0.05, tolerated=0.02, least=200, most=5_000)


def trial(events: int, served: int, tried: int, differing: int, failures: int = 0, **platforms: Sums) -> Trial:
    return Trial("v1", "v2", Sums(events, served, tried, differing), platforms, failures)


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


def test_figures() -> None:
    """The record of a trial's end has both hit rates and the bounds."""
    found = figures(trial(1000, 300, 450, 300), RULES)
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
