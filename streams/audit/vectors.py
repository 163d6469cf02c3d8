"""Compares every vector that was published to the profile changelog with the vector of the encoder that the row names.

A row stores the number of events in its window and the number of events on items that were unknown then, but not which window and which items. The
check searches for them: a user's windows form a chain, and items became known in an order. Several windows may fit if many items were unknown.
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

BATCH = 512  # rows per call of an encoder
GUESSES = 64  # guesses of one row in a batch, at most, once the likeliest ones failed
TOLERANCE = 2e-3  # difference of two entries that float16 rounding and another order of summation explain
MAX_SETS = 1000  # sets of possibly unknown items that are tried for one window
MAX_EXAMPLES = 50  # wrong rows that the result describes
Maker = tuple[str, str]
"""encoder_version and space_id."""


class Vectors(NamedTuple):
    """Owns the result of a check: counts over the rows of a profile changelog."""

    rows: int
    unknown_releases: int
    """Rows that name a release that is not among the given encoders."""
    wrong: int
    """Rows whose vector the named release does not make of any window of the user with that number of events and that newest event."""
    untold: int
    """Undecided rows: some items of the window became known later, and no tried set of unknown items reproduces the vector. Counted nowhere else."""
    mixed_space_pairs: int
    """Pairs of rows with one `space_id` whose vectors are not comparable, because releases of different spaces made them, or no known release."""
    releases: dict[Maker, int]
    """Release -> number of rows that name it."""
    examples: list[str]
    """Descriptions of the first MAX_EXAMPLES wrong rows: position in the changelog, and the fault."""


class _Published(NamedTuple):
    """Owns a row of the changelog and its candidate windows. The row is right if one of the windows reproduces its vector."""

    maker: Maker
    vector: np.ndarray
    unknown_items: int
    windows: Sequence[bytes]
    record: Any


class _Items(NamedTuple):
    """Owns all items, and the order in which they became known: (N,) arrays by row of the table."""

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
    """Check every record of the profile changelog against `encoders`, the releases that existed. Load the encoders for this check only.

    Records are in offset order within their partitions. `log` has the records of the unified topic. A user's possible windows are the folds of the
    first n of the user's events, for every n; replays and repairs lead to one of these too. `items` has the records of the item vectors; if an item's
    content changed, its last vector counts. Two releases of one space are comparable if their vectors of the same items have a mean cosine of at
    least `least_cosine`.
    """
    known, of = {(e.version, e.space_id): e for e in encoders}, _group_by_user(profiles)
    kept = _items(items)
    rows: Counter[Maker] = Counter()
    made: Counter[tuple[str, Maker | None]] = Counter()
    unknown = wrong = untold = 0
    examples: list[str] = []
    for batch in _batches(of, _events(log, names, of), policy):
        rows.update(r.maker for r in batch)
        unknown += sum(r.maker not in known for r in batch)
        for row, maker in zip(batch, _find_makers(batch, known, kept, policy), strict=True):
            if maker is None and row.maker in known and any(_late_events(row, w, kept)[1] > 0 for w in row.windows):
                untold += 1
            else:
                made[row.maker[1], maker] += 1
                if row.maker in known and maker != row.maker:
                    wrong += 1
                    if wrong <= MAX_EXAMPLES:
                        examples.append(_describe(row, maker, kept))
    return Vectors(rows.total(), unknown, wrong, untold, _mixed_space_pairs(made, known, kept.table, least_cosine), dict(rows), examples)


def _describe(row: _Published, maker: Maker | None, items: _Items) -> str:
    """Describe the fault of a row."""
    if maker is not None:
        why = f"{maker[0]} of {maker[1]} made it"
    elif not row.windows:
        why = "the user never had such a window"
    else:
        left = [_late_events(row, w, items)[1] for w in row.windows]
        why = f"no release made it; of the items of such windows {left} came later"
    r, p = row.record, decode_profile(row.record.value)
    return (
        f"partition {r.partition}, offset {r.offset}, written {r.timestamp}: user {p.user_id!r}, made {p.updated_at} by {row.maker[0]} "
        f"of {row.maker[1]} of {p.events} events up to {p.last_event_at}, {p.unknown_items} of them on unknown items: {why}"
    )


def _group_by_user(profiles: Iterable[Any]) -> dict[bytes, list[Any]]:
    found: dict[bytes, list[Any]] = defaultdict(list)
    for record in profiles:
        if record.value is not None:
            found[record.key].append(record)
    return found


def _events(log: Iterable[Any], names: Mapping[int, str], users: Mapping[bytes, Any]) -> dict[bytes, list[bytes]]:
    """Return user -> window rows in the order of the log."""
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
    """Yield all rows in batches of some users, because a user's windows of all times need much memory."""
    batch: list[_Published] = []
    for user, records in profiles.items():
        decoded = [decode_profile(r.value) for r in records]
        windows = _windows(events.get(user, []), {(p.last_event_at, p.events) for p in decoded}, policy)
        for p, record in zip(decoded, records, strict=True):
            maker, vector = (p.encoder_version, p.space_id), unpack_vector(p.vector)
            batch.append(_Published(maker, vector, p.unknown_items, windows.get((p.last_event_at, p.events), ()), record))
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _windows(rows: Iterable[bytes], wanted: set[tuple[int, int]], policy: Policy) -> dict[tuple[int, int], list[bytes]]:
    """Return the user's windows whose key (time of the newest event, number of events) is in `wanted`, by this key."""
    window, found = None, dict[tuple[int, int], list[bytes]]()
    for row in rows:
        before, window = window, fold(window, [row], policy)
        if window != before:
            body = np.frombuffer(window, DTYPE, offset=1)
            key = int(body["ts_ms"][-1]), len(body)
            if key in wanted:
                found.setdefault(key, []).append(window)
    return found


def _find_makers(rows: Sequence[_Published], known: Mapping[Maker, Encoder], items: _Items, policy: Policy) -> list[Maker | None]:
    """Return the release that made each row's vector: the named release if it fits, else another one, else None."""
    found: list[Maker | None] = [None] * len(rows)
    for maker, encoder in known.items():
        mine = [n for n, r in enumerate(rows) if r.maker == maker]
        for n, right in zip(mine, _made_by(encoder, [rows[n] for n in mine], items, policy), strict=True):
            found[n] = maker if right else None
    for maker, encoder in known.items():
        left = [n for n, by in enumerate(found) if by is None and rows[n].maker != maker]
        for n, right in zip(left, _made_by(encoder, [rows[n] for n in left], items, policy), strict=True):
            found[n] = maker if right else None
    return found


def _made_by(encoder: Encoder, rows: Sequence[_Published], items: _Items, policy: Policy) -> list[bool]:
    """Return for each row whether the encoder reproduces its vector from one of its windows and one guess of the unknown items."""
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
            is_by[n] |= bool(np.abs(vector - rows[n].vector).max() < TOLERANCE)
        guesses, more = {n: guesses[n] for n, _ in tried if not is_by[n]}, min(4 * more, GUESSES)
    return is_by


def _guesses(row: _Published, items: _Items) -> Iterator[tuple[bytes, list[int]]]:
    """Yield windows with a set of items (table rows) that the worker may not have known. Each set explains the row's count of unknown items.

    Items of one partition became known in its order, items of several partitions nearly in the order of time. Sets nearest to this order come first.
    """
    for window in row.windows:
        at, left = _late_events(row, window, items)
        if left <= 0:
            if not left:
                yield window, []
            continue
        counts = Counter(at[at != UNKNOWN].tolist())
        newest = sorted(counts, key=lambda r: -items.came[r])
        parts: dict[int, list[int]] = defaultdict(list)
        for r in newest:
            parts[int(items.partition[r])].append(r)
        newer_events = itertools.accumulate((counts[r] for r in newest), initial=0)  # for each item: events on newer items
        late = Counter(int(items.partition[r]) for r, n in zip(newest, newer_events, strict=False) if n < left)
        yield from ((window, hidden) for hidden in _nearest_sets([late[p] for p in parts], list(parts.values()), counts, left))


def _late_events(row: _Published, window: bytes, items: _Items) -> tuple[np.ndarray, int]:
    """Return the table rows of a window's items, and the number of its events on items that became known only after the profile was made."""
    at = items.table.index(np.frombuffer(window, DTYPE, offset=1)["item_key"])
    return at, row.unknown_items - int((at == UNKNOWN).sum())


def _nearest_sets(start: Sequence[int], parts: Sequence[Sequence[int]], counts: Mapping[int, int], left: int) -> Iterator[list[int]]:
    """Yield sets of items that have `left` events together. A set has the first n items of each part; sets with n nearest to `start` come first."""
    queue, seen = deque([tuple(start)]), {tuple(start)}
    while queue and len(seen) < MAX_SETS:
        lengths = queue.popleft()
        chosen = [item for part, n in zip(parts, lengths, strict=True) for item in part[:n]]
        if sum(counts[item] for item in chosen) == left:
            yield chosen
        for p, step in itertools.product(range(len(parts)), (-1, 1)):
            other = (*lengths[:p], lengths[p] + step, *lengths[p + 1 :])
            if 0 <= other[p] <= len(parts[p]) and other not in seen:
                seen.add(other)
                queue.append(other)


def _mixed_space_pairs(made: Mapping[tuple[str, Maker | None], int], known: Mapping[Maker, Encoder], table: ItemTable, least_cosine: float) -> int:
    """`made`: (space that rows name, release that made them) -> number of rows. Returns the number of pairs of one space that are not comparable."""

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
