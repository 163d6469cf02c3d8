"""Two encoders on a sample of users: what they would be shown, and why that differs. Reads the topics; changes nothing."""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import numpy as np
from aiokafka import TopicPartition

from encoder.base import Encoder
from encoder.features import UNKNOWN, ItemTable, featurize, fitted
from encoder.towers import load_tower
from schemas.items import decode_item_vector, item_key
from schemas.profiles import unpack_vector
from schemas.windows import rows_of
from streams.core.cancel import stop
from streams.core.settings import Settings
from streams.releases.release_log import ReleaseError
from streams.transport.reading import read_to_end, reader

FIRST, WIDE = 10, 50  # items of a user: compared one by one, and by their categories
SHOWN = 8


class Catalogue(NamedTuple):
    """Items by the row of the table."""

    table: ItemTable
    titles: dict[int, str]
    categories: dict[int, tuple[str, ...]]


async def compare(settings: Settings, one: Encoder, other: Encoder, users: int) -> dict[str, Any]:
    """The figures of `differ` on windows that are on their topic. Raises ReleaseError where there are none, BrokerError."""
    table = ItemTable(load_tower(settings.encoding.tower).dims)
    items, windows = Catalogue(table, {}, {}), dict[bytes, bytes]()
    async for record in _records(settings, "item-vectors"):
        if record.value is not None:
            item = decode_item_vector(record.value)
            if item.dims == table.dims:
                row = table.put(item_key(item.item), unpack_vector(item.vector))
                items.titles[row], items.categories[row] = item.title, item.categories
    async for record in _records(settings, "windows"):
        if record.value is None:
            windows.pop(record.key, None)
        elif record.key in windows or len(windows) < users:
            windows[record.key] = record.value
    known = {u: w for u, w in windows.items() if (table.index(rows_of(w)["item_key"]) != UNKNOWN).any()}
    if not known:
        raise ReleaseError("no user has acted on an item that is known: nothing to compare")
    return differ(known, items, one, other, settings)


async def _records(settings: Settings, name: str) -> AsyncIterator[Any]:
    consumer = reader(settings.kafka)
    await consumer.start()
    try:
        tps = [TopicPartition(settings.topic(name), p) for p in range(settings.worker.partitions)]
        async for _, records in read_to_end(consumer, await consumer.beginning_offsets(tps)):
            for record in records:
                yield record
    finally:
        await stop(consumer)


def differ(windows: dict[bytes, bytes], items: Catalogue, one: Encoder, other: Encoder, settings: Settings) -> dict[str, Any]:
    """How much the first items of each user agree, the cosine where the space is the same, and the categories that gain and lose.

    Why an interest moves is said by the action of the window that is nearest to an item which `other` puts among the first and `one` does not.
    """
    features = featurize(list(windows.values()), items.table, settings.encoding.policy.most)
    first, projected, vectors = [], [], []
    for encoder in (one, other):
        rows = encoder.project(items.table.vectors[: items.table.size], items.table.keys[: items.table.size])
        users = encoder.encode(fitted(features, encoder.max_len, settings.encoding.policy), items.table)
        scores = users @ rows.T
        scores[:, UNKNOWN] = -np.inf
        for n, seen in enumerate(features.items):
            scores[n, seen] = -np.inf  # what somebody has acted on already says little
        first.append(np.argsort(-scores, axis=1, kind="stable")[:, :WIDE])
        projected.append(rows)
        vectors.append(users)
    agreement = [len(set(a[:FIRST]) & set(b[:FIRST])) / FIRST for a, b in zip(*first, strict=True)]
    shares = [_shares(rows, items) for rows in first]
    before, after = (defaultdict(float, s) for s in shares)
    moved = {name: after[name] - before[name] for name in shares[0].keys() | shares[1].keys()}
    why = defaultdict[str, list[dict[str, Any]]](list)
    for n, user in enumerate(windows):
        for row in [r for r in first[1][n][:FIRST].tolist() if r not in first[0][n]][:3]:
            seen = features.items[n][features.mask[n] & (features.items[n] != UNKNOWN)]
            nearest = int(seen[np.argmax(projected[1][seen] @ projected[1][row])])
            for name in items.categories.get(row, ())[:1]:
                why[name].append({"user": user.decode(), "item": items.titles.get(row, ""), "because_of": items.titles.get(nearest, "")})
    order = sorted(moved, key=lambda name: -abs(moved[name]))[:SHOWN]
    same = one.space_id == other.space_id
    return {
        "one": one.version, "other": other.version, "users": len(windows), "items": items.table.size - 1, "same_space": same,
        "same_of_first_ten": round(float(np.mean(agreement)), 4),
        "cosine": round(float((vectors[0] * vectors[1]).sum(1).mean()), 4) if same else None,
        "interests": [{"name": n, "before": round(before[n], 4), "after": round(after[n], 4), "why": why[n][:2]} for n in order],
    }  # fmt: skip


def _shares(rows: np.ndarray, items: Catalogue) -> dict[str, float]:
    """Category -> its share of the users' WIDE first items."""
    counts = Counter[str]()
    for row, n in zip(*np.unique(rows, return_counts=True), strict=True):
        for name in items.categories.get(int(row), ()):
            counts[name] += n
    return {name: float(n / rows.size) for name, n in counts.items()}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for a reader."""
    cosine = "vectors of two spaces" if found["cosine"] is None else f"mean cosine {found['cosine']:.3f}"
    yield f"{found['one']} → {found['other']}, {found['users']} users, {found['items']} items"
    yield f"{found['same_of_first_ten']:.0%} of the first ten items agree; {cosine}"
    for i in found["interests"]:
        yield f"{i['after'] - i['before']:+7.1%}  {i['name']}  ({i['before']:.1%} → {i['after']:.1%})"
        for w in i["why"]:
            yield f"         {w['user']}: {w['item']!r}, for it acted on {w['because_of']!r}"
