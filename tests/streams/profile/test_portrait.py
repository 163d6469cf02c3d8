"""The portrait: interests, weights, trends, platforms, evidence."""

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.features import ItemTable, featurize
from schemas.events import BEHAVIOR_CODE
from schemas.items import item_key
from schemas.portraits import action_begins, interest_begins
from schemas.windows import DTYPE, VERSION
from streams.profile.portrait import Style, interests

HOUR = 3_600_000
WEIGHTS = {"view": 1.0, "buy": 6.0, "hide": -4.0, "rate": 3.0}
ITEMS = {"tea": ["Drinks"], "cup": ["Drinks", "Kitchen"], "pan": ["Kitchen"], "map": ["Travel"], "bare": []}


@dataclass
class Catalogue:
    categories: np.ndarray
    category_packed: np.ndarray
    category_order: np.ndarray
    item_packed: np.ndarray


def world(reverse: bool = False) -> tuple[ItemTable, Catalogue]:
    """The items; their categories numbered by name, or the other way round."""
    names = sorted({c for cs in ITEMS.values() for c in cs}, reverse=reverse)
    table, categories, packed = ItemTable(2), np.full((16, 4), -1, np.int32), [b""]
    for name, own in ITEMS.items():
        row = table.put(item_key(name), np.ones(2))
        categories[row, : len(own)] = [names.index(c) for c in own]
        packed.append(action_begins(name, name.title()))
    order = np.array([ord(n[0]) for n in names])
    return table, Catalogue(categories, np.array([interest_begins(n) for n in names], object), order, np.array(packed, object))


def style(interests: int = 10, evidence: int = 2) -> Style:
    weights = np.zeros(256)
    for name, weight in WEIGHTS.items():
        weights[BEHAVIOR_CODE[name]] = weight
    return Style(interests, evidence, 24 * HOUR, weights, {1: "shop", 2: "video"})


def window(*events: tuple[int, str, str] | tuple[int, str, str, int] | tuple[int, str, str, int, float]) -> bytes:
    """Events as (hour, item, behavior, platform = 1, value = none)."""
    rows = np.zeros(len(events), DTYPE)
    for i, (hour, item, behavior, *more) in enumerate(events):
        platform, value = (more[0] if more else 1), (more[1] if len(more) > 1 else np.nan)
        rows[i] = (hour * HOUR, i, item_key(item), platform, BEHAVIOR_CODE[behavior], 0xFFFF, value)
    return VERSION + rows.tobytes()


def portraits(*windows: bytes, **kind: int) -> list[list[dict[str, Any]]]:
    table, catalogue = world()
    return [msgpack.unpackb(p) for p in interests(featurize(windows, table, 64), catalogue, style(**kind))]


CASES = [
    ("one view", [(0, "tea", "view")], {"Drinks": 1.0}),
    ("a purchase counts six views", [(0, "tea", "view"), (0, "map", "buy")], {"Travel": 6 / 7, "Drinks": 1 / 7}),
    ("half after a half-life", [(0, "tea", "view"), (24, "map", "view")], {"Travel": 2 / 3, "Drinks": 1 / 3}),
    ("spread over categories", [(0, "cup", "view")], {"Drinks": 0.5, "Kitchen": 0.5}),
    ("a hide counts against", [(0, "tea", "view"), (0, "tea", "hide"), (0, "map", "view")], {"Travel": 1.0}),
    ("a bad rating counts against", [(0, "tea", "view"), (0, "tea", "rate", 1, -1.0), (0, "map", "view")], {"Travel": 1.0}),
    ("a middling rating says nothing", [(0, "tea", "rate", 1, 0.0), (0, "map", "view")], {"Travel": 1.0}),
    ("unknown item", [(0, "nowhere", "view")], {}),
    ("no category", [(0, "bare", "view")], {}),
]


@pytest.mark.parametrize(("events", "weights"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_weights(events: list[Any], weights: dict[str, float]) -> None:
    """Interests and their weights follow behavior, time and categories."""
    (found,) = portraits(window(*events))
    assert {i["name"]: i["weight"] for i in found} == pytest.approx(weights)
    assert [i["weight"] for i in found] == sorted((i["weight"] for i in found), reverse=True)


def test_trend() -> None:
    """An interest of the newer half rises, one of the older half falls."""
    (found,) = portraits(window((0, "tea", "view"), (0, "tea", "view"), (0, "map", "view"), (0, "map", "view")))
    assert {i["name"]: i["trend"] for i in found} == {"Travel": 1.0, "Drinks": -1.0}


def test_platforms() -> None:
    """An interest names the share of each platform, which sum to one."""
    (found,) = portraits(window((0, "tea", "view", 1), (0, "tea", "view", 2), (0, "tea", "view", 2), (0, "tea", "view", 9)))
    assert found[0]["platforms"] == {"shop": 0.25, "video": 0.5, "platform-9": 0.25}


def test_evidence() -> None:
    """Evidence is the strongest action on each item, the newer first among equals, at most as many as set."""
    (found,) = portraits(window((0, "tea", "view"), (1, "tea", "buy"), (2, "cup", "view"), (3, "tea", "view")), evidence=2)
    drinks = next(i for i in found if i["name"] == "Drinks")
    assert drinks["evidence"] == [
        {"item": "tea", "title": "Tea", "behavior": "buy", "at": HOUR},
        {"item": "cup", "title": "Cup", "behavior": "view", "at": 2 * HOUR},
    ]


def test_top() -> None:
    """Only the strongest interests are kept, and none if none are wanted."""
    events = window((0, "tea", "buy"), (0, "map", "view"))
    assert [i["name"] for i in portraits(events, interests=1)[0]] == ["Drinks"]
    assert portraits(events, interests=0) == [[]]


def test_long() -> None:
    """More platforms than a one-byte header counts are all there."""
    (found,) = portraits(window(*((p, "tea", "view", p) for p in range(1, 41))))
    assert (len(found), len(found[0]["platforms"]), found[0]["platforms"]["platform-40"] > found[0]["platforms"]["shop"]) == (1, 40, True)


events = st.lists(
    st.tuples(
        st.integers(0, 100),
        st.sampled_from([*ITEMS, "nowhere"]),
        st.sampled_from([*WEIGHTS]),
        st.integers(1, 3),
        st.sampled_from([-1.0, 0.3, np.nan]),
    ),
    min_size=1,
    max_size=64,
).map(lambda rows: window(*sorted(rows, key=lambda r: r[0])))


@given(st.lists(events, min_size=1, max_size=6))
def test_batch_is_each_alone(windows: list[bytes]) -> None:
    """A user's portrait does not depend on who else is in the batch."""
    assert portraits(*windows) == [portraits(w)[0] for w in windows]


@given(st.lists(events, min_size=1, max_size=3))
def test_numbers_of_categories(windows: list[bytes]) -> None:
    """Which category came first, and so has the lower number, changes no byte."""
    one, two = ((featurize(windows, table, 64), catalogue) for table, catalogue in (world(), world(reverse=True)))
    assert interests(*one, style()) == interests(*two, style())


@given(events)
def test_shares(one: bytes) -> None:
    """Weights sum to one where there is any interest, platforms of each interest too."""
    (found,) = portraits(one)
    if found:
        assert sum(i["weight"] for i in found) == pytest.approx(1, abs=1e-5)
    for interest in found:
        assert sum(interest["platforms"].values()) == pytest.approx(1, abs=1e-5)
        assert -1 <= interest["trend"] <= 1
        assert 1 <= len(interest["evidence"]) <= 2
