"""Merging a changelog into a tablet."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.features import ItemTable
from schemas.profiles import VECTOR_TYPE, Profile, encode_profile
from schemas.windows import DTYPE, NO_DWELL, ROW_BYTES, VERSION, fold
from streams.restore import merge, put_profiles, put_windows
from streams.tablets import Tablet

LIMIT = 6
EVENTS = 40


class Record(NamedTuple):
    key: bytes
    value: bytes | None


def rows(times: list[int]) -> list[bytes]:
    out = np.zeros(len(times), DTYPE)
    out["ts_ms"], out["event_id"], out["dwell_ds"] = times, times, NO_DWELL
    return [r.tobytes() for r in out]


def window(times: list[int]) -> bytes:
    return fold(None, rows(times), LIMIT)


def test_continued() -> None:
    """A window that continues another, grown or slid on, is taken as it is."""
    assert merge(window([1, 2]), window([1, 2, 3]), LIMIT) == window([1, 2, 3])
    slid = window([3, 4, 5, 6, 7, 8])
    assert merge(window([1, 2, 3, 4, 5, 6]), slid, LIMIT) is slid


@given(st.lists(st.integers(0, EVENTS)), st.lists(st.integers(0, EVENTS)))
def test_merge_is_the_fold(a: list[int], b: list[int]) -> None:
    """Whatever two workers folded of one user's events, merging gives the fold of all of them."""
    assert merge(window(a), window(b), LIMIT) == window([*a, *b])


@pytest.fixture
def tablet(tmp_path: Path) -> Tablet:
    return Tablet(0, tmp_path / "t")


def test_stale_window(tablet: Tablet) -> None:
    """An old row behind a newer one loses no event, and its user is named; a row that comes right afterwards is not."""
    short, table = set[bytes](), ItemTable(2)
    old, new = window([1, 5]), window([1, 2, 3, 4])
    put_windows(tablet, [Record(b"u", new), Record(b"u", old), Record(b"v", old), Record(b"v", window([1, 2, 5]))], short, table, LIMIT, {"t": 3})
    assert tablet.windows([b"u", b"v"]) == [window([1, 2, 3, 4, 5]), window([1, 2, 5])]
    assert (short, tablet.offset("t")[0]) == ({b"u"}, 3)
    put_windows(tablet, [Record(b"u", window([1, 2, 3, 4, 5]))], short, table, LIMIT, {"t": 4})
    assert short == set()
    put_windows(tablet, [Record(b"u", None), Record(b"u", old)], short, table, LIMIT, {"t": 6})
    assert (tablet.windows([b"u"]), short) == ([old], set())
    tablet.close()


def profile(user: str, times: list[int]) -> bytes:
    head = Profile(user, 9, max(times), 9, len(times), 0, "e", "s", 0, VECTOR_TYPE, b"")
    return encode_profile(head)


def test_stale_profile(tablet: Tablet) -> None:
    """A profile of another window than the user's is named, until the right one follows."""
    stale, long = set[bytes](), "x" * 1024
    tablet.write(windows=[(b"u", window([1, 2, 3])), (long.encode(), window([1, 300]))])
    put_profiles(tablet, [Record(b"u", profile("u", [1, 3])), Record(long.encode(), profile(long, [1, 300])), Record(b"w", None)], stale, {"t": 2})
    assert stale == {b"u"}
    put_profiles(tablet, [Record(b"u", profile("u", [1, 2, 3]))], stale, {"t": 3})
    assert stale == set()
    assert tablet.profile(b"u") == profile("u", [1, 2, 3])
    tablet.close()


def test_other_bytes() -> None:
    """A window that is none is an error, not lost events."""
    with pytest.raises(ValueError, match="version"):
        merge(VERSION + bytes(ROW_BYTES), b"\x07" + bytes(ROW_BYTES), LIMIT)
