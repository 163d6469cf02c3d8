"""The check of what was ever published: every vector of the profile changelog against the encoder that it names.

A row says how many events its window had and how many of them were on items that were not known yet. Which window and which items that were is
found out: a user's windows form a chain, items came in an order. Where many items were unknown, several windows may do.
"""

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from encoder.base import Encoder
from encoder.features import UNKNOWN, ItemTable, featurize, fitted
from schemas.events import decode_event
from schemas.items import decode_item_vector, item_key, item_name
from schemas.profiles import decode_profile, unpack_vector
from schemas.windows import DTYPE, Policy, fold, row_of

AT_ONCE = 512  # rows that are encoded at once
MORE = 64  # guesses of a row that are tried at once where the likeliest were none
NEAR = 2e-3  # two float16 of a vector's entry, and sums in another order
LOOKED = 1000  # sets of items that may have been unknown, at most, for one window
SHOWN = 50  # wrong rows that are told in words
Maker = tuple[str, str]
"""encoder_version and space_id."""


class Vectors(NamedTuple):
    """What the rows of a profile changelog came to."""

    rows: int
    unknown_releases: int
    """Rows that name a release which there was not."""
    wrong: int
    """Rows whose vector is not what the release that they name makes of any window that the user had with as many events and that newest one."""
    untold: int
    """Rows whose vector no release makes of a window some of whose items came later: which were known was not found out. They count as no other."""
    mixed_space_pairs: int
    """Pairs of rows of one `space_id` whose vectors are not comparable, for they were made by releases of different spaces, or by none."""
    releases: dict[Maker, int]
    """How many rows name each."""
    examples: list[str]
    """The first SHOWN wrong rows, each in words: where it stands in the changelog, and what is wrong with it."""


class _Published(NamedTuple):
    """A row of the changelog, and which windows it may have been made of: where there are several, one of them must do."""

    maker: Maker
    vector: np.ndarray
    unknown_items: int
    windows: Sequence[bytes]
    record: Any


class _Items(NamedTuple):
    """All items, and when each came: (N,) by row of the table."""

    table: ItemTable
    came: np.ndarray
    partition: np.ndarray


def check_vectors(
    profiles: Iterable[Any],
    log: Iterable[Any],
    items: Iterable[Any],
    encoders: Iterable[Encoder],
    names: Mapping[int, str],
    policy: Policy,
    least_cosine: float = 0.9,
) -> Vectors:
    """Every record of the profile changelog against the releases that there were: `encoders`, loaded for this alone.

    Records are in order within their partitions. A user's windows are the folds of the first so many of their events in `log`, the records of the
    unified topic: whatever was replayed or repaired, it was one of these. `items`: records of the item vectors; where an item's content changed, its
    last vector counts. Releases of one space are comparable where the same items have a mean cosine of at least `least_cosine`.
    """
    known, of = {(e.version, e.space_id): e for e in encoders}, _by_user(profiles)
    kept = _items(items)
    rows: Counter[Maker] = Counter()
    made: Counter[tuple[str, Maker | None]] = Counter()
    unknown = wrong = untold = 0
    examples: list[str] = []
    for batch in _batches(of, _events(log, names, of), policy):
        rows.update(r.maker for r in batch)
        unknown += sum(r.maker not in known for r in batch)
        for row, maker in zip(batch, _makers(batch, known, kept, policy), strict=True):
            if maker is None and row.maker in known and any(_left(row, w, kept)[1] > 0 for w in row.windows):
                untold += 1
            else:
                made[row.maker[1], maker] += 1
                if row.maker in known and maker != row.maker:
                    wrong += 1
                    if wrong <= SHOWN:
                        examples.append(_words(row, maker, kept))
    return Vectors(rows.total(), unknown, wrong, untold, _mixed(made, known, kept.table, least_cosine), dict(rows), examples)


def _words(row: _Published, maker: Maker | None, items: _Items) -> str:
    """What is wrong with a row."""
    if maker is not None:
        why = f"{maker[0]} of {maker[1]} made it"
    elif not row.windows:
        why = "the user never had such a window"
    else:
        left = [_left(row, w, items)[1] for w in row.windows]
        why = f"no release made it; of the items of such windows {left} came later"
    r, p = row.record, decode_profile(row.record.value)
    return (
        f"partition {r.partition}, offset {r.offset}, written {r.timestamp}: user {p.user_id!r}, made {p.updated_at} by {row.maker[0]} "
        f"of {row.maker[1]} of {p.events} events up to {p.last_event_at}, {p.unknown_items} of them on unknown items: {why}"
    )


def _by_user(profiles: Iterable[Any]) -> dict[bytes, list[Any]]:
    found: dict[bytes, list[Any]] = defaultdict(list)
    for record in profiles:
        if record.value is not None:
            found[record.key].append(record)
    return found


def _events(log: Iterable[Any], names: Mapping[int, str], users: Mapping[bytes, Any]) -> dict[bytes, list[bytes]]:
    """Users' window rows in the order of the log."""
    found: dict[bytes, list[bytes]] = defaultdict(list)
    for record in log:
        if record.key in users:
            event = decode_event(record.value)
            found[record.key].append(row_of(event, item_name(names[event.platform], event.item_id)))
    return found


def _items(records: Iterable[Any]) -> _Items:
    decoded = [(decode_item_vector(r.value), r) for r in records if r.value is not None]
    table, came, partition = ItemTable(decoded[0][0].dims if decoded else 1), {UNKNOWN: (0, 0)}, {UNKNOWN: -1}
    latest: dict[int, int] = defaultdict(int)
    for item, record in decoded:
        latest[record.partition] = at = max(latest[record.partition], record.timestamp)
        row = table.put(item_key(item.item), unpack_vector(item.vector))
        came.setdefault(row, (at, record.offset))
        partition.setdefault(row, record.partition)
    order = {row: n for n, row in enumerate(sorted(came, key=came.__getitem__))}
    return _Items(table, np.array([order[r] for r in range(table.size)]), np.array([partition[r] for r in range(table.size)]))


def _batches(profiles: Mapping[bytes, Sequence[Any]], events: Mapping[bytes, list[bytes]], policy: Policy) -> Iterator[list[_Published]]:
    """All rows, a few users at once: windows of all times take much room."""
    batch: list[_Published] = []
    for user, records in profiles.items():
        decoded = [decode_profile(r.value) for r in records]
        windows = _windows(events.get(user, []), {(p.last_event_at, p.events) for p in decoded}, policy)
        for p, record in zip(decoded, records, strict=True):
            maker, vector = (p.encoder_version, p.space_id), unpack_vector(p.vector)
            batch.append(_Published(maker, vector, p.unknown_items, windows.get((p.last_event_at, p.events), ()), record))
        if len(batch) >= AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _windows(rows: Iterable[bytes], wanted: set[tuple[int, int]], policy: Policy) -> dict[tuple[int, int], list[bytes]]:
    """(time of the newest event, number of events), `wanted` ones -> the windows that a user had."""
    window, found = None, dict[tuple[int, int], list[bytes]]()
    for row in rows:
        before, window = window, fold(window, [row], policy)
        if window != before:
            body = np.frombuffer(window, DTYPE, offset=1)
            key = int(body["ts_ms"][-1]), len(body)
            if key in wanted:
                found.setdefault(key, []).append(window)
    return found


def _makers(rows: Sequence[_Published], known: Mapping[Maker, Encoder], items: _Items, policy: Policy) -> list[Maker | None]:
    """Who made each row's vector: the release that it names, or else another one; None where nobody did."""
    found: list[Maker | None] = [None] * len(rows)
    for maker, encoder in known.items():
        mine = [n for n, r in enumerate(rows) if r.maker == maker]
        for n, right in zip(mine, _is_by(encoder, [rows[n] for n in mine], items, policy), strict=True):
            found[n] = maker if right else None
    for maker, encoder in known.items():
        left = [n for n, by in enumerate(found) if by is None and rows[n].maker != maker]
        for n, right in zip(left, _is_by(encoder, [rows[n] for n in left], items, policy), strict=True):
            found[n] = maker if right else None
    return found


def _is_by(encoder: Encoder, rows: Sequence[_Published], items: _Items, policy: Policy) -> list[bool]:
    """Whether an encoder makes each row's vector of one of its windows, some of their items perhaps not known yet."""
    is_by = [False] * len(rows)
    guesses = {n: _guesses(r, items) for n, r in enumerate(rows) if len(r.vector) == encoder.dims}
    more = 1
    while tried := [(n, guess) for n, left in guesses.items() for guess in itertools.islice(left, more)]:
        features = featurize([window for _, (window, _) in tried], items.table, policy.most)
        for n, (_, (_, hidden)) in enumerate(tried):
            if hidden:
                features.items[n, np.isin(features.items[n], hidden)] = UNKNOWN
        made = encoder.encode(fitted(features, encoder.max_len, policy), items.table)
        for (n, _), vector in zip(tried, made, strict=True):
            is_by[n] |= bool(np.abs(vector - rows[n].vector).max() < NEAR)
        guesses, more = {n: guesses[n] for n, _ in tried if not is_by[n]}, min(4 * more, MORE)
    return is_by


def _guesses(row: _Published, items: _Items) -> Iterator[tuple[bytes, list[int]]]:
    """Windows, and which of the items in them, by row of the table, the worker may not have known, so that as many events are on unknown ones.

    Items of one partition became known in its order, those of several nearly in the order of time: what is nearest to that comes first.
    """
    for window in row.windows:
        at, left = _left(row, window, items)
        if left <= 0:
            if not left:
                yield window, []
            continue
        counts = Counter(at[at != UNKNOWN].tolist())
        newest = sorted(counts, key=lambda r: -items.came[r])
        parts: dict[int, list[int]] = defaultdict(list)
        for r in newest:
            parts[int(items.partition[r])].append(r)
        behind = itertools.accumulate((counts[r] for r in newest), initial=0)  # events on items newer than each
        late = Counter(int(items.partition[r]) for r, n in zip(newest, behind, strict=False) if n < left)
        yield from ((window, hidden) for hidden in _near([late[p] for p in parts], list(parts.values()), counts, left))


def _left(row: _Published, window: bytes, items: _Items) -> tuple[np.ndarray, int]:
    """Table rows of a window's items, and how many of its events were on items that were not known when the profile was made, but came."""
    at = items.table.index(np.frombuffer(window, DTYPE, offset=1)["item_key"])
    return at, row.unknown_items - int((at == UNKNOWN).sum())


def _near(start: Sequence[int], parts: Sequence[Sequence[int]], counts: Mapping[int, int], left: int) -> Iterator[list[int]]:
    """The first so many items of each part, so that they have `left` events: those sets first that differ least from `start` of each."""
    queue, seen = deque([tuple(start)]), {tuple(start)}
    while queue and len(seen) < LOOKED:
        lengths = queue.popleft()
        chosen = [item for part, n in zip(parts, lengths, strict=True) for item in part[:n]]
        if sum(counts[item] for item in chosen) == left:
            yield chosen
        for p, step in itertools.product(range(len(parts)), (-1, 1)):
            other = (*lengths[:p], lengths[p] + step, *lengths[p + 1 :])
            if 0 <= other[p] <= len(parts[p]) and other not in seen:
                seen.add(other)
                queue.append(other)


def _mixed(made: Mapping[tuple[str, Maker | None], int], known: Mapping[Maker, Encoder], table: ItemTable, least_cosine: float) -> int:
    """`made`: space that rows name, and who really made them -> how many. Returns how many pairs of one space are not comparable."""

    def comparable(a: Maker | None, b: Maker | None) -> bool:
        if a is None or b is None or a[1] != b[1] or known[a].dims != known[b].dims:
            return False
        one, other = (e.project(table.vectors[1 : table.size], table.keys[1 : table.size]) for e in (known[a], known[b]))
        there = one.any(1) & other.any(1)
        return not there.any() or float((one[there] * other[there]).sum(1).mean()) >= least_cosine

    pairs = 0
    for (_, a), n in made.items():
        pairs += n * (n - 1) // 2 if a is None else 0
    for ((space, a), n), ((elsewhere, b), m) in itertools.combinations(made.items(), 2):
        pairs += n * m if space == elsewhere and not comparable(a, b) else 0
    return pairs
