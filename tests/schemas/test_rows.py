"""Rows that anybody may have written to Currents' own topics: which can be used."""

from collections.abc import Callable

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.items import ItemVector, encode_item_vector
from schemas.profiles import VECTOR_TYPE, Profile, encode_profile, pack_vector, unpack_profile, unpack_vector
from schemas.rows import KeyValue, RowError, bad_items, bad_profiles, bad_windows, check_event
from schemas.windows import DTYPE, NO_DWELL, VERSION, rows_of

Check = Callable[[list[KeyValue]], dict[int, RowError]]


def window(times: list[int], **fields: int) -> bytes:
    rows = np.zeros(len(times), DTYPE)
    rows["ts_ms"], rows["event_id"], rows["dwell_ds"] = times, np.abs(times), NO_DWELL
    for name, value in fields.items():
        rows[name] = value
    return VERSION + rows.tobytes()


def profile(vector: np.ndarray | None = None, user: str = "u", **other: object) -> bytes:
    packed = pack_vector(np.full(4, 0.5) if vector is None else vector)
    return encode_profile(msgspec.structs.replace(Profile(user, 1, 2, 3, 4, 0, "e", "s", 4, VECTOR_TYPE, packed), **other))


def item(vector: np.ndarray | None = None, name: str = "a:1", dims: int = 4) -> bytes:
    return encode_item_vector(ItemVector(name, "T", ("C",), "s", dims, pack_vector(np.full(4, 0.5) if vector is None else vector), 1))


def other_version(value: bytes) -> bytes:
    return bytes(msgpack.packb(msgpack.unpackb(value) | {"v": 9}))


BAD_VECTORS = [np.array([0.5, np.inf, 0, 0]), np.array([np.nan] * 4), np.array([-np.inf, 0, 0, 0])]
CASES: list[tuple[Check, bytes | None, bytes | None, str]] = [
    *[
        (check, key, good, "key")
        for check, good in ((bad_windows, window([1])), (bad_profiles, profile()), (bad_items, item()))
        for key in (None, b"", b"\xff\xfe", b"x" * 5000)
    ],
    *[(check, None, None, "key") for check in (bad_windows, bad_profiles, bad_items)],
    *[(check, b"u", b"", "empty") for check in (bad_windows, bad_profiles, bad_items)],
    (bad_windows, b"u", b"\x02" + window([1])[1:], "version"),
    (bad_windows, b"u", window([1, 2])[:-1], "value"),
    (bad_windows, b"u", VERSION, "value"),
    (bad_windows, b"u", window([2, 1]), "value"),
    (bad_windows, b"u", window([1, 1]), "value"),
    (bad_windows, b"u", window([-1]), "value"),
    (bad_windows, b"u", window([1], platform=64), "value"),
    (bad_windows, b"u", window([1], behavior=200), "value"),
    (bad_profiles, b"u", other_version(profile()), "version"),
    (bad_profiles, b"u", profile()[:-1], "value"),
    (bad_profiles, b"u", profile()[:40], "value"),
    (bad_profiles, b"u", b"noise", "value"),
    (bad_profiles, b"u", b"\x91" * 200_000, "value"),
    (bad_profiles, b"u", profile(dims=5), "dims"),
    (bad_profiles, b"u", profile(vector_type="float32-le"), "dims"),
    (bad_profiles, b"v", profile(), "key"),
    *[(bad_profiles, b"u", profile(v), "not-finite") for v in BAD_VECTORS],
    (bad_items, b"a:1", other_version(item()), "version"),
    (bad_items, b"a:1", item()[:-1], "value"),
    (bad_items, b"a:1", b"\x91" * 200_000, "value"),
    (bad_items, b"a:1", item(dims=5), "value"),
    (bad_items, b"a:2", item(), "key"),
    *[(bad_items, b"a:1", item(v), "not-finite") for v in BAD_VECTORS],
]
GOOD: dict[Check, KeyValue] = {bad_windows: (b"u", window([1, 2])), bad_profiles: (b"u", profile()), bad_items: (b"a:1", item())}


@pytest.mark.parametrize(("check", "key", "value", "reason"), CASES)
def test_bad_rows(check: Check, key: bytes | None, value: bytes | None, reason: str) -> None:
    """A row that cannot be used is found among good ones, with the reason that is counted; erasures are good."""
    good, gone = GOOD[check], (GOOD[check][0], None)
    found = check([good, (key, value), good, gone])
    assert {n: error.reason for n, error in found.items()} == {1: reason}
    assert check([good, gone, good]) == {}


@pytest.mark.parametrize(("key", "value"), [(None, b""), (b"u", b""), (b"u", None), (b"u", b"\x91" * 200_000), (b"u", b"noise")])
def test_bad_events(key: bytes | None, value: bytes | None) -> None:
    """What is no unified event of its key is refused by one kind of error."""
    with pytest.raises(RowError):
        check_event(key, value)


MUTANTS = st.builds(
    lambda value, at, byte, cut: (value[: at % len(value)] + bytes([byte]) + value[at % len(value) + 1 :])[: len(value) - cut],
    st.sampled_from([window([1, 2, 3]), profile(), item()]), st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3),
)  # fmt: skip


@given(st.lists(st.tuples(st.none() | st.binary(max_size=4) | st.just(b"u"), st.none() | st.binary(max_size=80) | MUTANTS), max_size=6))
def test_any_bytes(rows: list[KeyValue]) -> None:
    """Whatever stands in rows, what is not named bad is used by the decoders, and finite."""
    bad = bad_windows(rows)
    for n, (_, value) in enumerate(rows):
        if n not in bad and value is not None:
            assert len(rows_of(value)) > 0
    bad = bad_profiles(rows)
    for n, (key, value) in enumerate(rows):
        if n not in bad and value is not None:
            row = unpack_profile(value)  # its interests may be any MessagePack
            assert row["user_id"].encode() == key
            assert np.isfinite(unpack_vector(row["vector"])).all()
    bad_items(rows)
