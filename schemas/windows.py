"""The window: a user's newest events, one fixed-width row each, and the fold that keeps them.

    window = version byte (1) + n rows, oldest first by (ts_ms, event_id), then platform
    row    = 32 bytes, little-endian
      0       8          16        24       25        26        28      32
      | ts_ms | event_id | item_key | platf. | behav. | dwell_ds | value |
        i64     u64        u64        u8       u8       u16        f32

dwell_ds: tenths of a second, capped at 65534; 65535 = not known. value: NaN = not known.

Why folding is free of order, under quotas too. Write max(e, S) for the best row of event e in a set S of rows, and T(S) for a quota's choice:
of the events whose best row is in the quota's class, the k newest, each with its best row. The window is the union of the T(S).
An event is never dropped from a class by a better row: its platform is part of what it is, and a strong row is better than any other.
So for W(S) ⊆ X ⊆ S the events of T(S) are in the class in X too, with the same best rows, and nothing newer is: T(X) = T(S).
And an event that T chooses of A ∪ B has its best row in A, say, where it is among the k newest all the more: W(A ∪ B) ⊆ W(A) ∪ W(B).
Together: W(W(A) ∪ W(B)) = W(A ∪ B), whatever was evicted on the way. Were an event's class its greatest bytes' alone, this would not hold: with a
place for one row overall and one a platform, an old row evicts an older one of its platform, and is then replaced by greater bytes of another
platform; the evicted row should be back, and is gone.
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
"""Behaviors that say more than a look: fixed, for what windows keep depends on it."""
PLATFORMS = 64  # codes of platforms: schemas.events.Code
MANY = 256  # rows that are put into a window before it is chosen from again
_EVENT = struct.Struct("<qQ8xB")  # (ts_ms, event_id, platform)
_PLATFORM, _BEHAVIOR = 24, 25
_IS_STRONG = bytes(code < len(BEHAVIORS) and BEHAVIORS[code] in STRONG for code in range(256))
_NAN = float("nan")


def row_of(event: Event, item: str) -> bytes:
    """The 32 bytes of an event; `item` is its `platform:item_id`."""
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
    """Which rows a window keeps: the newest `overall` and, whatever their age, the newest `per_platform` of each platform and the newest `strong` of
    the behaviors STRONG. 0 is no such quota."""

    overall: int
    per_platform: int = 0
    strong: int = 0

    @property
    def most(self) -> int:
        """Rows that a window can have."""
        return self.overall + PLATFORMS * self.per_platform + self.strong


def fold(window: bytes | None, rows: Iterable[bytes], policy: Policy) -> bytes:
    """Add rows to a window and keep what the policy says. Idempotent and commutative: rows in any order, parts and number give the same bytes.

    Without quotas a row's key is (ts_ms, event_id), and of two rows of one key the one with the greater bytes stays. With quotas the platform
    belongs to the key, and of two rows of one key a strong one stays, then the one with the greater bytes: the module says why.
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
    """Put a late or repeated row into its place, searching from the newest end."""
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
    """The fold under quotas: put the rows into their places, then choose, once for up to MANY rows."""
    for n, row in enumerate(rows, 1):
        key = _EVENT.unpack_from(row)
        if not body or _EVENT.unpack_from(body, len(body) - ROW_BYTES) < key:
            body += row
        else:
            at = ROW_BYTES * bisect_left(range(len(body) // ROW_BYTES), key, key=lambda i: _EVENT.unpack_from(body, ROW_BYTES * i))
            end, other = at, row
            if _EVENT.unpack_from(body, at) == key:  # there is a row at `at`: the last one is not before the key
                end, other = at + ROW_BYTES, body[at : at + ROW_BYTES]
            body = body[:at] + max(row, other, key=_better) + body[end:]
        if not n % MANY:
            body = _choose(body, policy)
    return _choose(body, policy)


def _better(row: bytes) -> tuple[int, bytes]:
    return _IS_STRONG[row[_BEHAVIOR]], row


def _choose(body: bytes, policy: Policy) -> bytes:
    """Sorted rows, one a key -> those that the policy keeps. Only rows older than the newest `overall` are looked at one by one."""
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
    """(n,) rows of DTYPE, sorted and one a key within each owner (n,) -> (n,) bool, whether the policy keeps them."""
    out: np.ndarray = (newer(owner) < policy.overall) | held(rows, owner, policy)
    return out


def held(rows: np.ndarray, owner: np.ndarray, policy: Policy) -> np.ndarray:
    """As `kept`, by the quotas alone."""
    owner, strong = owner.astype(np.int64), np.frombuffer(_IS_STRONG, bool)[rows["behavior"]]
    of_platform = newer(owner * 256 + rows["platform"]) < policy.per_platform
    out: np.ndarray = of_platform | (strong & (newer(owner * 2 + strong) < policy.strong))
    return out


def newer(group: np.ndarray) -> np.ndarray:
    """(n,) group of each row -> (n,) how many later rows are of the same group."""
    order = np.argsort(group, kind="stable")
    grouped = group[order]
    last = np.flatnonzero(np.append(grouped[1:] != grouped[:-1], len(group) > 0))  # of each run of one group
    out = np.empty(len(group), np.int64)
    out[order] = np.repeat(last, np.diff(last, prepend=-1)) - np.arange(len(group))
    return out


def rows_of(window: bytes) -> np.ndarray:
    """Window -> (n,) structured array of DTYPE, oldest first. Raises ValueError on other bytes."""
    check(window)
    return np.frombuffer(window, DTYPE, offset=1)


def newest_ms(window: bytes) -> int:
    """Time of the newest event of a window that has one."""
    return int.from_bytes(window[-ROW_BYTES : 8 - ROW_BYTES], "little", signed=True)


def check(window: bytes) -> bytes:
    """The window itself, or a ValueError that says what is wrong with its bytes."""
    if window[:1] != VERSION:
        raise ValueError(f"window of version {window[:1].hex() or 'nothing'}, this release reads {VERSION.hex()}")
    if (len(window) - 1) % ROW_BYTES:
        raise ValueError(f"window of {len(window)} bytes: want 1 + a multiple of {ROW_BYTES}")
    return window
