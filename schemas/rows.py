"""Rows of Currents' own compacted topics as anybody may have written them: which of them cannot be used, and why.

A row is a key and a value; value None is an erasure. Each check looks at many rows at once and returns row number -> what is wrong with it: the good
case costs one look at all of them together.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from schemas.events import BEHAVIORS, Event, decode_event
from schemas.items import ItemVector, decode_item_vector
from schemas.profiles import VECTOR_TYPE, VERSION, Profile
from schemas.windows import DTYPE, PLATFORMS, ROW_BYTES, check

KeyValue = tuple[bytes | None, bytes | None]
MAX_KEY_BYTES = 4400  # an id of 1024 characters, and its platform
_EXPONENT = 0x7C00  # of a float16: all ones in inf and NaN
_FIELDS = [(f.name, msgspec.Raw if f.name == "interests" else f.type) for f in msgspec.structs.fields(Profile)]
_Row = msgspec.defstruct("_Row", [("v", int), *_FIELDS], gc=False)
_profile = msgspec.msgpack.Decoder(_Row).decode
"""The interests are any MessagePack here: they are most of a profile, and a restore looks at every row. Who shows them checks them."""


class RowError(ValueError):
    """A row that cannot be used. `reason`: a slug, fit for a metric's label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def check_key(key: bytes | None) -> str:
    """The text of a key. Raises RowError."""
    if not key:
        raise RowError("key", "no key" if key is None else "an empty key")
    if len(key) > MAX_KEY_BYTES:
        raise RowError("key", f"a key of {len(key)} bytes, want at most {MAX_KEY_BYTES}")
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise RowError("key", f"key {key!r:.60}: want UTF-8") from None


def bad_windows(rows: Sequence[KeyValue]) -> dict[int, RowError]:
    """Of rows of `currents.windows`."""
    found = _bad_keys(rows)
    there = [n for n, (_, value) in enumerate(rows) if n not in found and value is not None]
    values = [value for n in there if (value := rows[n][1]) is not None]
    if all(value[:1] == b"\x01" and len(value) > 1 and not (len(value) - 1) % ROW_BYTES for value in values) and _right_rows(values):
        return found
    for n, value in zip(there, values, strict=True):
        try:
            if not value:
                raise RowError("empty", "an empty value")
            if len(check(value)) == 1:
                raise RowError("value", "a window without events")
            if not _right_rows([value]):
                raise RowError("value", "a window with a platform or behavior that there is not, or out of order")
        except ValueError as error:
            found[n] = _row_error(error)
    return found


def _right_rows(windows: Sequence[bytes]) -> bool:
    """Whether every row has a platform and a behavior that there may be, and is newer than the one before it in its window."""
    body = np.frombuffer(b"".join([w[1:] for w in windows]), DTYPE)
    if not len(body):
        return True
    if body["platform"].max() >= PLATFORMS or body["behavior"].max() >= len(BEHAVIORS) or body["ts_ms"].min() < 0:
        return False
    ts, ids, platform = body["ts_ms"], body["event_id"], body["platform"]
    same_ts = ts[1:] == ts[:-1]
    same_id = same_ts & (ids[1:] == ids[:-1])
    newer = (ts[1:] > ts[:-1]) | (same_ts & (ids[1:] > ids[:-1])) | (same_id & (platform[1:] > platform[:-1]))
    begins = np.cumsum([len(w) // ROW_BYTES for w in windows])[:-1]  # of the windows after the first
    newer[begins - 1] = True
    return bool(newer.all())


def bad_profiles(rows: Sequence[KeyValue]) -> dict[int, RowError]:
    """Of rows of `currents.profiles`."""
    found, vectors = _bad_keys(rows), dict[int, bytes]()
    for n, (key, value) in enumerate(rows):
        if value is not None and n not in found:
            try:
                vectors[n] = _vector(key or b"", value)
            except ValueError as error:
                found[n] = _row_error(error)
    return found | _not_finite(vectors)


def _vector(user: bytes, value: bytes) -> bytes:
    """A profile's vector. Raises RowError, ValueError."""
    if not value:
        raise RowError("empty", "an empty value")
    try:
        row: Any = _profile(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RowError("value", f"not a profile: {error}") from None
    if row.v != VERSION:
        raise RowError("version", f"a profile of version {row.v}, this release reads {VERSION}")
    if row.user_id.encode() != user:
        raise RowError("key", f"of user {row.user_id!r:.60}")
    if row.vector_type != VECTOR_TYPE or len(row.vector) != 2 * row.dims:
        raise RowError("dims", f"{len(row.vector)} bytes of {row.vector_type!r:.20} are not {row.dims} dims of {VECTOR_TYPE}")
    return bytes(row.vector)


def bad_items(rows: Sequence[KeyValue]) -> dict[int, RowError]:
    """Of rows of `currents.item-vectors`."""
    found = dict[int, RowError]()
    for n, (key, value) in enumerate(rows):
        try:
            check_item(key, value)
        except RowError as error:
            found[n] = error
    return found


def check_item(key: bytes | None, value: bytes | None) -> ItemVector | None:
    """A row of `currents.item-vectors`; None: the item went. Raises RowError."""
    name = check_key(key)
    if value is None:
        return None
    try:
        if not value:
            raise RowError("empty", "an empty value")
        item = decode_item_vector(value)
        if item.item != name:
            raise RowError("key", f"of item {item.item!r:.60}")
    except ValueError as error:
        raise _row_error(error) from None
    if bad := _not_finite({0: item.vector}):
        raise bad[0]
    return item


def check_event(key: bytes | None, value: bytes | None) -> Event:
    """A row of `currents.events`. Raises RowError."""
    try:
        event = decode_event(value or b"")
    except ValueError as error:
        raise _row_error(error) from None
    if event.user_id.encode() != key:
        raise RowError("key", f"key {key!r:.60} is not the user {event.user_id!r:.60}")
    return event


def _bad_keys(rows: Sequence[KeyValue]) -> dict[int, RowError]:
    found = dict[int, RowError]()
    for n, (key, _) in enumerate(rows):
        if not (key and len(key) <= MAX_KEY_BYTES and key.isascii()):
            try:
                check_key(key)
            except RowError as error:
                found[n] = error
    return found


def _not_finite(vectors: dict[int, bytes]) -> dict[int, RowError]:
    """Of little-endian float16 vectors."""
    if _finite(b"".join(vectors.values())):
        return {}
    return {n: RowError("not-finite", "a vector with inf or NaN") for n, vector in vectors.items() if not _finite(vector)}


def _finite(vector: bytes) -> bool:
    return not ((np.frombuffer(vector, "<u2") & _EXPONENT) == _EXPONENT).any()


def _row_error(error: ValueError) -> RowError:
    said = " ".join(str(error).split())[:300]
    return error if isinstance(error, RowError) else RowError("version" if "version" in said else "value", said)
