"""The window, which holds a user's newest events in one fixed-width row each, and the fold that adds events to it.

    window = version byte (1) + n rows, oldest first by (ts_ms, event_id), then platform
    row    = 32 bytes, little-endian
      0       8          16        24       25        26        28      32
      | ts_ms | event_id | item_key | platf. | behav. | dwell_ds | value |
        i64     u64        u64        u8       u8       u16        f32

dwell_ds: tenths of a second, capped at 65534; 65535 = unknown. value: NaN = unknown.

Folding does not depend on the order of the rows, with quotas too. Proof. An event may have several rows; max(e, S) is the best row of event e in a
set S of rows. T(S) is the choice of one quota: among the events whose best row is in the quota's class, the k newest, each with its best row. The
window W(S) is the union of T(S) over all quotas. A better row never removes an event from a class: the platform is part of the event's key, and a
strong row is better than any other row.
Let W(S) ⊆ X ⊆ S. The events of T(S) are in the class in X too, with the same best rows, and X has no newer ones: T(X) = T(S).
Let T choose an event from A ∪ B. Its best row is in A, say, and the event is among the k newest of A too: W(A ∪ B) ⊆ W(A) ∪ W(B).
Together: W(W(A) ∪ W(B)) = W(A ∪ B), whatever rows were evicted on the way.
The proof fails if the greatest bytes alone decide an event's class. Example: one place overall and one a platform. A row evicts an older row of its
platform. Greater bytes with another platform then replace the first row. The evicted row now belongs in the window and is lost.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from schemas.events import BEHAVIORS, Event
from schemas.items import item_key

VERSION = b"\x01"
ROW = struct.Struct("<qQQBBHf")
KEY = struct.Struct("<qQ")
ROW_BYTES = ROW.size
NO_DWELL = 0xFFFF
DTYPE = np.dtype(
    [
        ("ts_ms", "<i8"),
        ("event_id", "<u8"),
        ("item_key", "<u8"),
        ("platform", "u1"),
        ("behavior", "u1"),
        ("dwell_ds", "<u2"),
        ("value", "<f4"),
    ]
)
STRONG = frozenset(("like", "follow", "share", "comment", "save", "cart", "buy", "rate", "hide"))
"""Behaviors that show more interest than a view. The set is fixed, because the content of stored windows depends on it."""
PLATFORMS = 64  # number of platform codes: schemas.events.Code
MANY = 256  # rows inserted into a window before the policy is applied again
_EVENT = struct.Struct("<qQ8xB")  # (ts_ms, event_id, platform)
_PLATFORM, _BEHAVIOR = 24, 25
_IS_STRONG = bytes(code < len(BEHAVIORS) and BEHAVIORS[code] in STRONG for code in range(256))
_NAN = float("nan")


def row_of(event: Event, item: str) -> bytes:
    """Return the 32-byte row of an event. `item`: the event's `platform:item_id`."""
    dwell, value = event.dwell_s, event.value
    return ROW.pack(
        event.ts_ms,
        event.event_id,
        item_key(item),
        event.platform,
        event.behavior,
        NO_DWELL if dwell is None else min(round(dwell * 10), NO_DWELL - 1),
        _NAN if value is None else value,
    )


@dataclass(frozen=True, slots=True)
class Policy:
    """Owns the quotas of a window: it keeps the newest `overall` rows, the newest `per_platform` rows of each platform, and the newest `strong` rows
    with behaviors STRONG. The last two are kept whatever their age; 0 switches the quota off."""

    overall: int
    per_platform: int = 0
    strong: int = 0

    @property
    def most(self) -> int:
        """Maximum number of rows of a window."""
        return self.overall + PLATFORMS * self.per_platform + self.strong


def fold(window: bytes | None, rows: Iterable[bytes], policy: Policy) -> bytes:
    """Add rows to a window and keep those that the policy selects. Idempotent and commutative: the order, the batches and the repetition of rows do
    not change the bytes.

    Without quotas a row's key is (ts_ms, event_id). Of two rows with one key the row with the greater bytes stays. With quotas the platform belongs
    to the key. Of two rows with one key a strong row stays; if both or neither are strong, the row with the greater bytes. The module docstring
    proves that the order does not matter.
    """
    body = window[1:] if window else b""
    if policy.per_platform or policy.strong:
        return VERSION + _fold(body, rows, policy)
    limit = policy.overall
    for row in rows:
        key = KEY.unpack_from(row)
        if not body or KEY.unpack_from(body, len(body) - ROW_BYTES) < key:
            body = body[max(0, len(body) - (limit - 1) * ROW_BYTES) :] + row
        else:
            body = _insert(body, key, row, limit)
    return VERSION + body


def _insert(body: bytes, key: tuple[int, int], row: bytes, limit: int) -> bytes:
    """Insert a late or repeated row at its position, searching from the newest end."""
    at = len(body)
    while at > 0:
        other = KEY.unpack_from(body, at - ROW_BYTES)
        if other < key:
            break
        at -= ROW_BYTES
        if other == key:
            return body[:at] + max(row, body[at : at + ROW_BYTES]) + body[at + ROW_BYTES :]
    full = len(body) >= limit * ROW_BYTES
    if at == 0 and full:
        return body
    return body[ROW_BYTES if full else 0 : at] + row + body[at:]


def _fold(body: bytes, rows: Iterable[bytes], policy: Policy) -> bytes:
    """Fold with quotas: insert the rows at their positions, and apply the policy once for up to MANY rows."""
    for n, row in enumerate(rows, 1):
        key = _EVENT.unpack_from(row)
        if not body or _EVENT.unpack_from(body, len(body) - ROW_BYTES) < key:
            body += row
        else:
            at = ROW_BYTES * bisect_left(range(len(body) // ROW_BYTES), key, key=lambda i: _EVENT.unpack_from(body, ROW_BYTES * i))
            end, other = at, row
            if _EVENT.unpack_from(body, at) == key:  # a row exists at `at`, because the last row is not below the key
                end, other = at + ROW_BYTES, body[at : at + ROW_BYTES]
            body = body[:at] + max(row, other, key=_better) + body[end:]
        if not n % MANY:
            body = _choose(body, policy)
    return _choose(body, policy)


def _better(row: bytes) -> tuple[int, bytes]:
    return _IS_STRONG[row[_BEHAVIOR]], row


def _choose(body: bytes, policy: Policy) -> bytes:
    """Sorted rows, one per key -> the rows that the policy keeps. Loops only over rows older than the newest `overall`."""
    cut = len(body) // ROW_BYTES - policy.overall
    if cut <= 0:
        return body
    platforms, strong = body[_PLATFORM::ROW_BYTES], body[_BEHAVIOR::ROW_BYTES].translate(_IS_STRONG)
    newer, newer_strong, kept = dict[int, int](), strong.count(1, cut), [body[cut * ROW_BYTES :]]
    for i in range(cut - 1, -1, -1):
        platform = platforms[i]
        before = newer.get(platform)
        if before is None:
            before = platforms.count(platform, cut)
        newer[platform] = before + 1
        if before < policy.per_platform or (strong[i] and newer_strong < policy.strong):
            kept.append(body[i * ROW_BYTES : (i + 1) * ROW_BYTES])
        newer_strong += strong[i]
    return b"".join(reversed(kept))


def kept(rows: np.ndarray, owner: np.ndarray, policy: Policy) -> np.ndarray:
    """(n,) rows of DTYPE and their (n,) owners; sorted, one row per key within an owner -> (n,) bool: whether the policy keeps the row."""
    out: np.ndarray = (newer(owner) < policy.overall) | held(rows, owner, policy)
    return out


def held(rows: np.ndarray, owner: np.ndarray, policy: Policy) -> np.ndarray:
    """As `kept`, but only for the quotas `per_platform` and `strong`."""
    owner, strong = owner.astype(np.int64), np.frombuffer(_IS_STRONG, bool)[rows["behavior"]]
    of_platform = newer(owner * 256 + rows["platform"]) < policy.per_platform
    out: np.ndarray = of_platform | (strong & (newer(owner * 2 + strong) < policy.strong))
    return out


def newer(group: np.ndarray) -> np.ndarray:
    """(n,) group of each row -> (n,) number of later rows in the same group."""
    order = np.argsort(group, kind="stable")
    grouped = group[order]
    last = np.flatnonzero(np.append(grouped[1:] != grouped[:-1], len(group) > 0))  # last index of each group's run
    out = np.empty(len(group), np.int64)
    out[order] = np.repeat(last, np.diff(last, prepend=-1)) - np.arange(len(group))
    return out


def rows_of(window: bytes) -> np.ndarray:
    """Window -> (n,) structured array of DTYPE, oldest row first. Raises ValueError if the bytes are no window."""
    check(window)
    return np.frombuffer(window, DTYPE, offset=1)


def newest_ms(window: bytes) -> int:
    """Return the time of the newest event, ms. The window has at least one row."""
    return int.from_bytes(window[-ROW_BYTES : 8 - ROW_BYTES], "little", signed=True)


def check(window: bytes) -> bytes:
    """Return the window unchanged. Raises ValueError, which says what is wrong, if the bytes are no window."""
    if window[:1] != VERSION:
        raise ValueError(f"window of version {window[:1].hex() or 'nothing'}, this release reads {VERSION.hex()}")
    if (len(window) - 1) % ROW_BYTES:
        raise ValueError(f"window of {len(window)} bytes: want 1 + a multiple of {ROW_BYTES}")
    return window
