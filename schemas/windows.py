"""The window: a user's newest L events, one fixed-width row each, and the fold that keeps them.

    window = version byte (1) + n rows, oldest first by (ts_ms, event_id)
    row    = 32 bytes, little-endian
      0       8          16        24       25        26        28      32
      | ts_ms | event_id | item_key | platf. | behav. | dwell_ds | value |
        i64     u64        u64        u8       u8       u16        f32

dwell_ds: tenths of a second, capped at 65534; 65535 = not known. value: NaN = not known.
"""

import struct
from collections.abc import Iterable

import numpy as np

from schemas.events import Event
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


def fold(window: bytes | None, rows: Iterable[bytes], limit: int) -> bytes:
    """Keep the `limit` greatest rows by (ts_ms, event_id), one per key. Idempotent and commutative.

    Two rows of one key keep the one with the greater bytes, so that order of arrival never matters.
    """
    body = window[1:] if window else b""
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
