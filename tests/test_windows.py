"""The window and its fold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import Event
from schemas.windows import KEY, NO_DWELL, ROW, VERSION, fold, row_of, rows_of

GOLDEN = "012e8fa97c9b0100000700000000000000bd10bcab3cde5571030b1e0000009441"


def event(ts_ms: int, event_id: int, **more: object) -> Event:
    return Event(1, "u", ts_ms, event_id, 3, 11, "sku-1", "a", **more)  # type: ignore[arg-type]


def test_golden() -> None:
    """The bytes of a window never change within a version."""
    assert fold(None, [row_of(event(1_767_323_045_678, 7, value=18.5, dwell_s=3.0), "shop:sku-1")], 64).hex() == GOLDEN


def test_absent_numbers() -> None:
    """What is not known is told from zero; a long dwell is capped."""
    rows = rows_of(fold(None, [row_of(event(1, 1), "i"), row_of(event(2, 2, value=0.0, dwell_s=0.0), "i"), row_of(event(3, 3, dwell_s=1e9), "i")], 9))
    assert rows["dwell_ds"].tolist() == [NO_DWELL, 0, NO_DWELL - 1]
    assert str(rows["value"].tolist()) == "[nan, 0.0, nan]"


rows = st.builds(
    ROW.pack, st.integers(0, 12), st.integers(0, 3), st.integers(0, 2), st.integers(0, 1), st.integers(0, 1), st.just(0), st.sampled_from([0.0, 1.0])
)
limits = st.sampled_from([1, 2, 3, 5, 64])


def offline(all_rows: list[bytes], limit: int) -> bytes:
    best: dict[tuple[int, ...], bytes] = {}
    for row in all_rows:
        key = KEY.unpack_from(row)
        best[key] = max(row, best.get(key, row))
    return VERSION + b"".join(best[k] for k in sorted(best)[-limit:])


@given(st.lists(rows, min_size=1), limits)
def test_newest_by_key(some: list[bytes], limit: int) -> None:
    """The fold keeps the newest rows by (time, id), one of each key, in order."""
    assert fold(None, some, limit) == offline(some, limit)


@given(st.lists(rows, min_size=1), limits, st.randoms(use_true_random=False))
def test_order_and_repeats_do_not_matter(some: list[bytes], limit: int, random: object) -> None:
    """Any order, any cut into batches and any replay gives the same bytes."""
    shuffled = some * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    cut = len(shuffled) // 3
    window = fold(fold(None, shuffled[:cut], limit) if cut else None, shuffled[cut:], limit)
    assert window == fold(None, some, limit)
    assert fold(window, some, limit) == window


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x01" + b"x" * 31, b"\x00" + b"x" * 32])
def test_refused(data: bytes) -> None:
    """Bytes that are no window of this version are refused."""
    with pytest.raises(ValueError, match="window of"):
        rows_of(data)


def test_empty() -> None:
    """A window without events is a version byte."""
    assert len(rows_of(VERSION)) == 0
