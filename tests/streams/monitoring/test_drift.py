"""Alarms about how events and vectors are distributed."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import BEHAVIOR_CODE, Event
from streams.monitoring.drift import BINS, PARTS, Drift, chi_square, field_bins, moved, psi


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(least: int = 500, alpha: float = 1e-4) -> tuple[Drift, Clock, dict[tuple[str, str], tuple[float, bool]]]:
    """A drift of windows of 5 s, with what it told last."""
    clock, told = Clock(), dict[tuple[str, str], tuple[float, bool]]()
    return Drift(5.0, 1.0, 0.2, 0.02, alpha, least, lambda what, of, found, alarm: told.update({(what, of): (found, alarm)}), clock), clock, told


def seconds(drift: Drift, clock: Clock, n: int, views: float, unknown: float, seed: int) -> None:
    """n seconds of 300 events each, of which shares are views, and on unknown items."""
    r = np.random.default_rng(seed)
    for _ in range(n):
        codes = np.where(r.random(300) < views, BEHAVIOR_CODE["view"], BEHAVIOR_CODE["buy"])
        drift.events("shop", codes, r.random(300) < unknown)
        clock.now += 1.0


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=12))
def test_psi(counts: list[tuple[int, int]]) -> None:
    """The index is symmetric, never negative, and nothing for equal shares."""
    p, q = (np.array(c, float) for c in zip(*counts, strict=True))
    if p.sum() and q.sum():
        assert psi(p, q) == pytest.approx(psi(q, p))
        assert psi(p, q) >= 0
        assert psi(p, p) == pytest.approx(0, abs=1e-12)


def test_psi_by_hand() -> None:
    """Shares of .9 and .1 against .6 and .4 with many counts."""
    wanted = (0.9 - 0.6) * np.log(0.9 / 0.6) + (0.1 - 0.4) * np.log(0.1 / 0.4)
    assert psi(np.array([9e6, 1e6]), np.array([6e6, 4e6])) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("degrees", "alpha", "wanted"), [(1, 0.05, 3.841), (5, 0.01, 15.086), (10, 1e-4, 35.564)])
def test_chi_square(degrees: int, alpha: float, wanted: float) -> None:
    """The approximate quantile is near the tables' value."""
    assert chi_square(degrees, alpha) == pytest.approx(wanted, rel=0.03)


def test_silent_while_nothing_changes() -> None:
    """A hundred thousand events of one kind raise no alarm."""
    drift, clock, told = watched()
    for n in range(35):
        seconds(drift, clock, 10, 0.8, 0.02, n)
        assert drift.alarms() == []
    assert told["behaviors", "shop"][0] < 0.05


def test_few_events_are_not_enough() -> None:
    """With a few hundred events chance makes the index large, and still there is no alarm at each of 200 starts."""
    r = np.random.default_rng(1)
    for _ in range(200):
        drift, clock, _ = watched(least=60)
        for _ in range(3 * PARTS):
            drift.events("shop", r.integers(0, 12, 14), np.zeros(14, bool))
            clock.now += 1.0
        assert drift.alarms() == []


@pytest.mark.parametrize(("views", "unknown", "alarm"), [(0.3, 0.02, "behaviors of shop"), (0.8, 0.3, "unknown-items of shop")])
def test_raised_and_cleared(views: float, unknown: float, alarm: str) -> None:
    """What moves is named, nothing else, and the alarm ends when all is as it was."""
    drift, clock, told = watched()
    seconds(drift, clock, 150, 0.8, 0.02, 1)
    seconds(drift, clock, 8, views, unknown, 2)
    assert drift.alarms() == [alarm]
    what, of = alarm.split(" of ")
    assert told[what, of][1]
    seconds(drift, clock, 12, 0.8, 0.02, 3)
    assert drift.alarms() == []


def test_what_lasts_becomes_usual() -> None:
    """A change that stays raises an alarm once, and is what later ones are compared with."""
    drift, clock, _ = watched()
    seconds(drift, clock, 30, 0.8, 0.02, 1)
    seconds(drift, clock, 8, 0.3, 0.02, 2)
    assert drift.alarms()
    seconds(drift, clock, 300, 0.3, 0.02, 3)
    assert drift.alarms() == []


def test_records() -> None:
    """A mapping that fits no longer shows as dead letters, also as few ones."""
    drift, clock, _ = watched()
    for n in range(40):
        drift.records("shop", 300, ["bad-time"] * (1 if n < 30 else 15), [])
        clock.now += 1.0
    assert drift.alarms() == ["dead-letters of shop"]


@pytest.mark.parametrize("seed", range(20))
def test_other_reasons(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """As many dead letters as before, of another reason, are an alarm that names it; those of the same reasons are none."""
    drift, clock, r = *watched()[:2], np.random.default_rng(seed)

    def records(reason: str) -> None:
        dead = int(r.binomial(300, 0.06))
        drift.records("shop", 300 - dead, [reason] * dead, [])
        clock.now += 1.0

    for _ in range(100):
        records("no-item")
        assert drift.alarms() == []
    for _ in range(10):
        records("unknown-behavior")
    assert drift.alarms() == ["dead-letters of shop"]
    assert "; unknown-behavior: " in caplog.text


CHANGES = [
    ({"value": None}, "fields of shop"),
    ({"dwell_s": 3.0}, "fields of shop"),
    ({"item_id": "1b4e28ba-2fa1-11d2-883f-0016d3cca427"}, "item-ids of shop"),
    ({"item_id": "sku12345"}, "item-ids of shop"),
    ({"item_id": "ключ"}, "item-ids of shop"),
]


@pytest.mark.parametrize(("change", "alarm"), CHANGES)
def test_looks(change: dict[str, Any], alarm: str) -> None:
    """Optional fields that go or come, and item ids of another form, are an alarm from one event in twenty on."""
    drift, clock, _ = watched()
    usual = Event(1, "u", 1, 1, 1, 1, "12345", "a", 2.0)
    other = msgspec.structs.replace(usual, **change)
    for n in range(40):
        some = [other if n >= 30 and k % 20 == 0 else usual for k in range(300)]
        drift.records("shop", 300, [], [field_bins(e) for e in some])
        clock.now += 1.0
    assert drift.alarms() == [alarm]


@given(st.text(min_size=1, max_size=60), st.booleans(), st.booleans())
def test_every_event_looks_like_something(item: str, value: bool, dwell: bool) -> None:
    """Whatever an event is, it is of a bin."""
    fields, ids = field_bins(Event(1, "u", 1, 1, 1, 1, item, "a", 1.0 if value else None, 0.0 if dwell else None))
    assert (0 <= fields < len(BINS["fields"]), 0 <= ids < len(BINS["item-ids"])) == (True, True)


def test_moved_by_chance() -> None:
    """Where nothing changes a share is taken for moved no more often than alpha says, whatever the share and the numbers."""
    r, alpha = np.random.default_rng(7), 0.01
    for share in (0.005, 0.02, 0.2, 0.5):
        for n, m in ((500, 500), (500, 50_000), (20_000, 50_000)):
            found = 0
            for _ in range(1000):
                window, reference = (np.array([k - (x := r.binomial(k, share)), x], float) for k in (n, m))
                found += bool(moved(window, reference, 1e-6, alpha).any())
            assert found / 1000 <= 2 * alpha


@pytest.mark.parametrize(
    ("before", "now", "alarm"), [(0.02, 0.08, True), (0.003, 0.05, True), (0.04, 0.0, True), (0.3, 0.35, False), (0.001, 0.01, False)]
)
def test_moved(before: float, now: float, alarm: bool) -> None:
    """A share that doubles or halves by two hundredths of all has moved; less, or not to twice as much, has not."""
    window, reference = (np.array([1 - share, share]) * 20_000 for share in (now, before))
    assert bool(moved(window, reference, 0.02, 1e-4).any()) == alarm


@pytest.mark.parametrize("broken", ["collapsed", "zero", "long", "one item"])
def test_vectors(broken: str) -> None:
    """Vectors that are all alike, nothing, of another length, or rank one item first, are seen; those of another encoder are watched apart."""
    r = np.random.default_rng(2)
    drift, clock, _ = watched()
    items = r.standard_normal((200, 16)).astype(np.float32)
    center = r.standard_normal(16)
    users = [b"%d" % n for n in range(300)]

    def made(spoilt: bool) -> np.ndarray:
        v = center / 4 + r.standard_normal((300, 16))
        if spoilt and broken == "collapsed":
            v = 20 * center + r.standard_normal((300, 16))
        if spoilt and broken == "one item":
            v = items[7] + 0.1 * r.standard_normal((300, 16))
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        if spoilt and broken in ("zero", "long"):
            v[::2] *= {"zero": 0, "long": 3}[broken]
        return v

    for n in range(40):
        drift.vectors("v1", users, made(n >= 30), items)
        drift.vectors("v2", users, made(False), items)
        clock.now += 1.0
    wanted = {"collapsed": "spread of v1", "zero": "norm of v1", "long": "norm of v1", "one item": "coverage of v1"}[broken]
    assert wanted in drift.alarms()
    assert not [a for a in drift.alarms() if a.endswith("v2")]


@pytest.mark.parametrize("users", [1, 40])
def test_a_user_counts_once(users: int) -> None:
    """That many users' vectors become alike is an alarm; that one user has many of them is none."""
    r, raised = np.random.default_rng(3), set[str]()
    drift, clock, _ = watched(least=100)
    items = r.standard_normal((50, 8)).astype(np.float32)
    for n in range(60):
        changed = n >= 40
        some = np.full((40, 8), 2.0) if changed else r.standard_normal((40, 8))
        whose = [b"%d" % (k % users if changed else k) for k in range(40)]
        drift.vectors("v1", whose, some / np.linalg.norm(some, axis=1, keepdims=True), items)
        clock.now += 1.0
        raised.update(drift.alarms())
    assert ("spread of v1" in raised) == (users > 1)
