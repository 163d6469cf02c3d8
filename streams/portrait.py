"""The readable side of a profile: named interests from the categories of the items in a window.

Weight of an event = weight of its behavior · rating (for `rate`, value in -1..1) · 0.5^(age / half-life), spread evenly over its item's categories.
An interest's weight is its share of all positive interest; what sums to nothing or less is left out. Only relative ages
matter in such a share, so a portrait is a pure function of its window and the items. The whole batch is done at once in numpy.

Shape letters: B users, T events, P pairs of an event and a category, G groups = pairs of a user and a category.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgpack
import numpy as np

from encoder.features import UNKNOWN, Features
from schemas.events import BEHAVIOR_CODE, BEHAVIORS

_pack = msgpack.Packer().pack
_RATE = BEHAVIOR_CODE["rate"]


class Catalogue(Protocol):
    """What a portrait needs of the items; rows as in the item table."""

    categories: np.ndarray  # (N, C) int32 category numbers, -1 = none
    category_packed: list[bytes]  # MessagePack of each category's name
    category_order: np.ndarray  # a number for each category that depends on its name alone
    item_packed: list[bytes]  # MessagePack of the fields item and title of each row


@dataclass(frozen=True)
class Style:
    """What a portrait shows."""

    interests: int
    evidence: int
    half_life_ms: float
    weights: np.ndarray  # (256,) float64 by behavior code
    platforms: Mapping[int, str]  # names by platform code


_NAME, _WEIGHT, _TREND = b"\x85" + _pack("name"), _pack("weight") + b"\xca", _pack("trend") + b"\xca"  # ca: float 32 follows
_PLATFORMS, _EVIDENCE = _pack("platforms"), _pack("evidence")
_ACTION = b"\x84"
_BEHAVIOR_PACKED = [_pack("behavior") + _pack(name) + _pack("at") + b"\xcf" for name in BEHAVIORS]  # cf: uint 64 follows
_ARRAY = [bytes([0x90 + n]) if n < 16 else b"\xdc" + n.to_bytes(2, "big") for n in range(101)]
_MAP = [bytes([0x80 + n]) if n < 16 else b"\xde" + n.to_bytes(2, "big") for n in range(65)]
_USERS = 4096  # at once: what is sorted has to fit 16 bits, which numpy sorts in linear time


def interests(features: Features, catalogue: Catalogue, style: Style) -> list[bytes]:
    """B windows -> the field `interests` of each profile, a MessagePack array, strongest first."""
    if len(features.lengths) <= _USERS and len(catalogue.category_packed) < 1 << 16:
        return _interests(features, catalogue, style)
    out: list[bytes] = []
    for a in range(0, len(features.lengths), _USERS):
        part = slice(a, a + _USERS)
        out += _interests(Features(features.rows[part], features.items[part], features.lengths[part], features.mask[part]), catalogue, style)
    return out


def _interests(features: Features, catalogue: Catalogue, style: Style) -> list[bytes]:
    users, events, rows, items, weight = _events(features, style)
    categories = catalogue.categories[items]  # (events, C)
    named = categories >= 0
    pair_event, column = np.nonzero(named)
    category = categories[pair_event, column]
    order = _sorted(category)
    order = order[_sorted(users[pair_event[order]])]
    pair_event, category = pair_event[order], category[order]
    pair_weight = (weight / np.maximum(named.sum(1), 1))[pair_event]
    pair_user = users[pair_event]
    if not pair_event.size or not style.interests:
        return [_ARRAY[0]] * len(features.lengths)
    start = np.flatnonzero(np.r_[True, (category[1:] != category[:-1]) | (pair_user[1:] != pair_user[:-1])])
    user = pair_user[start]
    total = np.add.reduceat(pair_weight, start)
    newer = 2 * events[pair_event] >= features.lengths[pair_user]  # the newer half of the window
    trend = _share(np.add.reduceat(pair_weight * newer, start), user) - _share(np.add.reduceat(pair_weight * ~newer, start), user)
    share = _share(total, user)

    kept = np.flatnonzero(total > 0)
    name = catalogue.category_order[category[start]]  # among equals, so that a portrait does not depend on which category came first
    kept = kept[np.lexsort((name[kept], -total[kept], user[kept]))]
    kept = kept[_rank(user[kept]) < style.interests]
    number = np.full(len(start), -1)
    number[kept] = np.arange(len(kept))
    of_pair = np.repeat(number, np.diff(np.r_[start, len(category)]))  # the kept group of each pair, or -1
    pairs = np.flatnonzero((of_pair >= 0) & (pair_weight > 0))[::-1]  # newer actions first
    of_pair, pair_event, pair_weight = of_pair[pairs], pair_event[pairs], pair_weight[pairs]

    evidence = _evidence(of_pair, pair_event, pair_weight, rows, items, catalogue, style.evidence, len(kept))
    platforms = _platforms(of_pair, pair_weight, rows["platform"][pair_event], style, len(kept))
    names = category[start][kept].tolist()
    shares, trends = share[kept].astype(">f4").tobytes(), trend[kept].astype(">f4").tobytes()
    packed = catalogue.category_packed
    out, g = [], 0
    for n in np.bincount(user[kept], minlength=len(features.lengths)).tolist():
        parts = [_ARRAY[n]]
        for k in range(g, g + n):
            a, b = 4 * k, 4 * k + 4
            parts += (_NAME, packed[names[k]], _WEIGHT, shares[a:b], _TREND, trends[a:b], _PLATFORMS, platforms[k], _EVIDENCE, evidence[k])
        g += n
        out.append(b"".join(parts))
    return out


def _events(features: Features, style: Style) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Known events of all windows: user, place in the window, row, item, weight."""
    users, events = np.nonzero(features.mask & (features.items != UNKNOWN))
    rows, items = features.rows[users, events], features.items[users, events]
    last = features.rows["ts_ms"][np.arange(len(features.lengths)), np.maximum(features.lengths - 1, 0)]
    weight = style.weights[rows["behavior"]] * np.exp2((rows["ts_ms"] - last[users]) / style.half_life_ms)
    rated = (rows["behavior"] == _RATE) & np.isfinite(rows["value"])
    weight[rated] *= np.clip(rows["value"][rated], -1, 1)
    return users, events, rows, items, weight


def _share(total: np.ndarray, user: np.ndarray) -> np.ndarray:
    """(G,) positive total of each group as a share of its user's."""
    total = np.maximum(total, 0)
    whole = np.bincount(user, total)[user]
    out: np.ndarray = np.divide(total, whole, out=np.zeros_like(total), where=whole > 0)
    return out


def _sorted(small: np.ndarray) -> np.ndarray:
    """Stable argsort of numbers below 2^16: numpy sorts these by radix."""
    return np.argsort(small.astype(np.uint16), kind="stable")


def _rank(owner: np.ndarray) -> np.ndarray:
    """0, 1, 2, … within each run of equal owners."""
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if owner.size else np.zeros(0, int)
    return np.arange(len(owner)) - np.repeat(first, np.diff(np.r_[first, len(owner)]))


def _evidence(
    of_pair: np.ndarray, event: np.ndarray, weight: np.ndarray, rows: np.ndarray, items: np.ndarray, catalogue: Catalogue, keep: int, groups: int
) -> list[bytes]:
    """Packed evidence of each group: its strongest actions, one for each item; among equals (to 3 digits) the newer."""
    order = _sorted(np.finfo(np.float16).max.view(np.uint16) - np.minimum(weight, 6e4).astype(np.float16).view(np.uint16))
    order = order[_sorted(of_pair[order])] if groups < 1 << 16 else order[np.argsort(of_pair[order], kind="stable")]
    order = order[_rank(of_pair[order]) < 4 * keep]  # room for actions on one item
    event = event[order]
    times = rows["ts_ms"][event].astype(">u8").tobytes()
    behaviors, names = rows["behavior"][event].tolist(), items[event].tolist()
    packed, out, at = catalogue.item_packed, [], 0
    for n in np.bincount(of_pair[order], minlength=groups).tolist():
        chosen: dict[int, int] = {}
        for k in range(at, at + n):
            if len(chosen) == keep:
                break
            chosen.setdefault(names[k], k)
        parts = [_ARRAY[len(chosen)]]
        for item, k in chosen.items():
            parts += (_ACTION, packed[item], _BEHAVIOR_PACKED[behaviors[k]], times[8 * k : 8 * k + 8])
        at += n
        out.append(b"".join(parts))
    return out


def _platforms(of_pair: np.ndarray, weight: np.ndarray, code: np.ndarray, style: Style, groups: int) -> list[bytes]:
    """Packed share of each platform in each group."""
    codes, column = np.unique(code, return_inverse=True)
    share = np.bincount(of_pair * len(codes) + column, weight, minlength=len(codes) * groups).reshape(groups, len(codes))
    share = share / share.sum(1, keepdims=True)
    group, column = np.nonzero(share)
    values, columns = share[group, column].astype(">f4").tobytes(), column.tolist()
    names = [_pack(style.platforms.get(c, f"platform-{c}")) + b"\xca" for c in codes.tolist()]
    out, at = [], 0
    for n in np.bincount(group, minlength=groups).tolist():
        parts = [_MAP[n]]
        for k in range(at, at + n):
            parts += (names[columns[k]], values[4 * k : 4 * k + 4])
        at += n
        out.append(b"".join(parts))
    return out
