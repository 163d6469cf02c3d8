"""The readable side of a profile: named interests from the categories of the items in a window.

Weight of an event = weight of its behavior · rating (for `rate`, value in -1..1) · 0.5^(age / half-life), spread evenly over its item's categories.
An interest's weight is its share of all positive interest. A category whose sum is zero or negative is left out. A share depends on relative ages
only, so a portrait is a pure function of its window and the items. numpy processes the whole batch at once, including the packed bytes: they are
an array of parts, most of them packed beforehand, which are joined user by user.

Shape letters: B users, T events, P pairs of an event and a category, G groups = pairs of a user and a category, K categories, N rows of items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from encoder.features import UNKNOWN, Features
from schemas.events import BEHAVIOR_CODE, BEHAVIORS
from schemas.portraits import _array, _map, _pack

_RATE = BEHAVIOR_CODE["rate"]


class Catalogue(Protocol):
    """The item columns that a portrait reads. Rows are those of the item table."""

    categories: np.ndarray  # (N, C) int32 category numbers, -1 = none
    category_packed: np.ndarray  # (K,) of bytes: `interest_begins` of each category
    category_order: np.ndarray  # (K,) rank of each category, which depends on the category's name only
    item_packed: np.ndarray  # (N,) of bytes: `action_begins` of each row


@dataclass(frozen=True)
class Style:
    """Owns the settings of a portrait."""

    interests: int
    evidence: int
    half_life_ms: float
    weights: np.ndarray  # (256,) float64 by behavior code
    platforms: Mapping[int, str]  # names by platform code


_ARRAY = np.array([_array(n) for n in range(101)], object)
_PLATFORMS = np.array([_pack("platforms") + _map(n) for n in range(257)], object)
_EVIDENCE = np.array([_pack("evidence") + _array(n) for n in range(101)], object)
_BEHAVIOR = np.array([_pack("behavior") + _pack(name) + _pack("at") + b"\xcf" for name in BEHAVIORS], object)  # cf: uint 64 follows
_NUMBERS = np.dtype([("weight", "V8"), ("share", ">f4"), ("trend", "V7"), ("change", ">f4")])
_WEIGHT, _TREND = np.void(_pack("weight") + b"\xca"), np.void(_pack("trend") + b"\xca")  # ca: float 32 follows
_USERS = 4096  # per call: the numbers to sort then almost always fit 16 bits


def interests(features: Features, catalogue: Catalogue, style: Style) -> list[bytes]:
    """B windows -> B packed MessagePack arrays, the field `interests` of each profile, strongest interest first."""
    if not style.interests:
        return [_ARRAY[0]] * len(features.lengths)
    if len(features.lengths) <= _USERS:
        return _interests(features, catalogue, style)
    out: list[bytes] = []
    for a in range(0, len(features.lengths), _USERS):
        part = slice(a, a + _USERS)
        out += _interests(Features(features.rows[part], features.items[part], features.lengths[part], features.mask[part]), catalogue, style)
    return out


def _interests(features: Features, catalogue: Catalogue, style: Style) -> list[bytes]:
    at, weight = _events(features, style)
    users, events = np.divmod(at, features.items.shape[1])
    rows, items = features.rows.reshape(-1), features.items.reshape(-1)[at]  # a copy of a column costs less than one of whole rows
    categories = catalogue.categories[items]  # (events, C)
    named = categories >= 0
    pair_event, column = np.nonzero(named)
    category = categories[pair_event, column]
    present = np.flatnonzero(np.bincount(category)) if category.size else category
    place = np.zeros(len(catalogue.category_order), int)  # rank of a category's name among those present; category numbers are arbitrary
    place[present[np.argsort(catalogue.category_order[present])]] = np.arange(len(present))
    order = _sorted(place[category])
    order = order[_sorted(users[pair_event[order]])]
    pair_event, category = pair_event[order], category[order]
    pair_weight = (weight / np.maximum(named.sum(1), 1))[pair_event]
    pair_user = users[pair_event]
    if not pair_event.size:
        return [_ARRAY[0]] * len(features.lengths)
    start = np.flatnonzero(np.r_[True, (category[1:] != category[:-1]) | (pair_user[1:] != pair_user[:-1])])
    user = pair_user[start]
    total = np.add.reduceat(pair_weight, start)
    newer = 2 * events[pair_event] >= features.lengths[pair_user]  # the newer half of the window
    trend = _share(np.add.reduceat(pair_weight * newer, start), user) - _share(np.add.reduceat(pair_weight * ~newer, start), user)
    share = _share(total, user)

    kept = np.flatnonzero(total > 0)
    kept = kept[np.argsort(-total[kept], kind="stable")]  # equals stay in the order of their names
    kept = kept[_sorted(user[kept])]
    kept = kept[_rank(user[kept]) < style.interests]
    number = np.full(len(start), -1)
    number[kept] = np.arange(len(kept))
    of_pair = np.repeat(number, np.diff(np.r_[start, len(category)]))  # the kept group of each pair, or -1
    pairs = np.flatnonzero((of_pair >= 0) & (pair_weight > 0))[::-1]  # newer actions first
    of_pair, pair_event, pair_weight = of_pair[pairs], pair_event[pairs], pair_weight[pairs]

    owner = user[kept]
    numbers = np.empty(len(kept), _NUMBERS)
    numbers["weight"], numbers["share"], numbers["trend"], numbers["change"] = _WEIGHT, share[kept], _TREND, trend[kept]
    group, platform, part = _platforms(of_pair, pair_weight, rows["platform"][at[pair_event]], style, len(kept))
    proof = _evidence(of_pair, pair_weight, items[pair_event], style.evidence)
    proved, acted = of_pair[proof], pair_event[proof]

    # Parts: an array's header for each user; then for each interest its name, numbers, header of platforms, each one's name and share,
    # header of evidence, each action's item, behavior and time.
    platforms, actions = np.bincount(group, minlength=len(kept)), np.bincount(proved, minlength=len(kept))
    size = 4 + 2 * platforms + 3 * actions
    of_user = np.bincount(owner, size, minlength=len(features.lengths)).astype(int) + 1
    ends = np.cumsum(of_user)
    begin = np.cumsum(size) - size + owner + 1
    parts = np.empty(ends[-1], object)
    parts[ends - of_user] = _ARRAY[np.bincount(owner, minlength=len(of_user))]
    parts[begin] = catalogue.category_packed[category[start][kept]]
    parts[begin + 1] = _bytes(numbers)
    parts[begin + 2] = _PLATFORMS[platforms]
    parts[begin + 3 + 2 * platforms] = _EVIDENCE[actions]
    where = begin[group] + 3 + 2 * _rank(group)
    parts[where] = platform
    parts[where + 1] = _bytes(part.astype(">f4"))
    where = (begin + 4 + 2 * platforms)[proved] + 3 * _rank(proved)
    parts[where] = catalogue.item_packed[items[acted]]
    parts[where + 1] = _BEHAVIOR[rows["behavior"][at[acted]]]
    parts[where + 2] = _bytes(rows["ts_ms"][at[acted]].astype(">u8"))
    flat = parts.tolist()
    return [b"".join(flat[a:b]) for a, b in pairwise((0, *ends.tolist()))]


def _bytes(values: np.ndarray) -> np.ndarray:
    """(n,) array of any dtype -> (n,) object array with the bytes of each element."""
    out: np.ndarray = values.view(f"V{values.itemsize}").astype(object)
    return out


def _events(features: Features, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of known events in the flattened windows, and their weights."""
    rows = features.rows
    at = np.flatnonzero(features.mask & (features.items != UNKNOWN))
    last = rows["ts_ms"][np.arange(len(features.lengths)), np.maximum(features.lengths - 1, 0)]
    age = (rows["ts_ms"] - last[:, None]).reshape(-1)[at]
    behavior = rows["behavior"].reshape(-1)[at]
    weight = style.weights[behavior] * np.exp2(age / style.half_life_ms)
    rates = np.flatnonzero(behavior == _RATE)
    value = rows["value"].reshape(-1)[at[rates]]
    said = np.isfinite(value)
    weight[rates[said]] *= np.clip(value[said], -1, 1)
    return at, weight


def _share(total: np.ndarray, user: np.ndarray) -> np.ndarray:
    """(G,) totals -> (G,) share of each group's positive total in its user's sum of positive totals."""
    total = np.maximum(total, 0)
    whole = np.bincount(user, total)[user]
    out: np.ndarray = np.divide(total, whole, out=np.zeros_like(total), where=whole > 0)
    return out


def _sorted(numbers: np.ndarray) -> np.ndarray:
    """Stable argsort of non-negative numbers. numpy uses radix sort if all are below 2^16."""
    return np.argsort(numbers.astype(np.uint16) if numbers.max(initial=0) < 1 << 16 else numbers, kind="stable")


def _rank(owner: np.ndarray) -> np.ndarray:
    """0, 1, 2, … within each run of equal owners."""
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if owner.size else np.zeros(0, int)
    return np.arange(len(owner)) - np.repeat(first, np.diff(np.r_[first, len(owner)]))


def _evidence(of_pair: np.ndarray, weight: np.ndarray, item: np.ndarray, keep: int) -> np.ndarray:
    """Return the pairs that are evidence, by group: the group's strongest actions, one per item. Ties (to 3 digits) go to the newer action."""
    order = _sorted(np.finfo(np.float16).max.view(np.uint16) - np.minimum(weight, 6e4).astype(np.float16).view(np.uint16))
    order = order[_sorted(of_pair[order])]
    rank = _rank(of_pair[order])
    order, rank = order[rank < 4 * keep], rank[rank < 4 * keep]  # margin for several actions on one item
    group, item = of_pair[order], item[order]
    repeated = np.zeros(len(order), bool)  # the group has a stronger action on the same item
    for back in range(1, int(rank.max(initial=0)) + 1):
        repeated[back:] |= (item[back:] == item[:-back]) & (group[back:] == group[:-back])
    order, group = order[~repeated], group[~repeated]
    out: np.ndarray = order[_rank(group) < keep]
    return out


def _platforms(of_pair: np.ndarray, weight: np.ndarray, code: np.ndarray, style: Style, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a row per group and platform, ordered by group: the group, the platform's packed name, the platform's share in the group."""
    codes, column = np.unique(code, return_inverse=True)
    share = np.bincount(of_pair * len(codes) + column, weight, minlength=len(codes) * groups).reshape(groups, len(codes))
    share = share / share.sum(1, keepdims=True)
    group, column = np.nonzero(share)
    names = np.array([_pack(style.platforms.get(c, f"platform-{c}")) + b"\xca" for c in codes.tolist()], object)
    return group, names[column], share[group, column]
