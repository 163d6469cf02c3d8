"""The item table and the featurizer."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.features import NUMERIC, TIMES, UNKNOWN, ItemTable, featurize, fitted, model_inputs, padded
from schemas.events import BEHAVIOR_CODE, BEHAVIORS
from schemas.windows import DTYPE, NO_DWELL, STRONG, VERSION, Policy

keys = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(keys | st.integers(0, 40), st.booleans()), max_size=120), st.lists(keys, max_size=20))
def test_table_is_a_dict(changes: list[tuple[int, bool]], others: list[int]) -> None:
    """Whatever is put, replaced and forgotten, the table finds what a dict would."""
    table, known = ItemTable(1, capacity=4), dict[int, float]()
    for n, (key, put) in enumerate(changes, 1):
        if put:
            table.put(key, np.array([n]))
            known[key] = n
        else:
            table.forget(key)
            known[key] = 0.0
    asked = [*known, *others]
    rows = table.index(np.array(asked, np.uint64))
    assert [float(table.vectors[r, 0]) for r in rows] == [known.get(k, 0.0) for k in asked]
    assert not table.vectors[UNKNOWN].any()


@given(st.lists(keys | st.integers(0, 40), max_size=300), keys)
def test_table_at_once(some: list[int], another: int) -> None:
    """A table that is made at once finds what one does into which the same was put bit by bit, and takes more."""
    table, known = ItemTable.of(np.array(some, np.uint64), np.arange(len(some)).reshape(-1, 1)), {key: float(n) for n, key in enumerate(some)}
    assert (table.size, table.writes, sorted(table.written[1 : table.size])) == (1 + len(known), len(known), [*range(1, 1 + len(known))])
    table.put(another, np.array([-1.0]))
    known[another] = -1.0
    assert {k: float(table.vectors[r, 0]) for k, r in zip(known, table.index(np.array([*known], np.uint64)), strict=True)} == known
    assert table.vectors.dtype == np.float32


def test_table_counts_writes() -> None:
    """Every write is counted and noted at its row, also after the table has grown; an unknown key that is forgotten is no write."""
    table = ItemTable(1, capacity=2)
    assert [table.put(key, np.ones(1)) for key in (5, 6, 7, 6)] == [1, 2, 3, 2]
    assert (table.forget(9), table.writes) == (UNKNOWN, 4)
    assert (table.forget(5), table.writes) == (1, 5)
    assert (table.size, table.written[: table.size].tolist()) == (4, [0, 5, 4, 3])
    assert len(table.vectors) == len(table.keys) == len(table.written) == 4


def test_table_at_once_of_two() -> None:
    """A table that is made at once has one row a key, in the order of their last vectors."""
    table = ItemTable.of(np.array([8, 9, 8], np.uint64), np.array([[1.0], [2.0], [3.0]]))
    assert table.index(np.array([9, 8, 7], np.uint64)).tolist() == [1, 2, UNKNOWN]
    assert (table.vectors[:3, 0].tolist(), table.written[:3].tolist(), len(table.vectors)) == ([0, 2, 3], [0, 1, 2], 64)
    assert table.put(7, np.ones(1)) == 3


def test_looked_up_while_it_grows() -> None:
    """What is known is found on another thread at every moment while more is put, also while the slots are laid out anew."""
    table, done, missed, known = ItemTable(1, capacity=4), threading.Event(), list[int](), 0

    def look() -> None:
        while not done.is_set():
            missed.append(int((table.index(np.arange(1, known + 1, dtype=np.uint64)) == UNKNOWN).sum()))

    looking = threading.Thread(target=look)
    looking.start()
    for key in range(1, 9000):
        table.put(key, np.ones(1))
        known = key
    done.set()
    looking.join()
    assert sum(missed) == 0


def window(*rows: tuple[int, int]) -> bytes:
    out = np.zeros(len(rows), DTYPE)
    out["ts_ms"], out["item_key"] = zip(*rows, strict=True)
    out["dwell_ds"], out["value"] = NO_DWELL, np.nan
    return VERSION + out.tobytes()


def test_featurize() -> None:
    """Windows are padded at the end; only the newest events are kept; unknown items are row 0."""
    table = ItemTable(2)
    for key in (1, 2, 3):
        table.put(key, np.ones(2))
    f = featurize([window((10, 1), (20, 2), (30, 3)), window((5, 9))], table, 2)
    assert f.items.tolist() == [[2, 3], [UNKNOWN, UNKNOWN]]
    assert (f.lengths.tolist(), f.mask.tolist()) == ([2, 1], [[True, True], [True, False]])
    assert f.rows["ts_ms"].tolist() == [[20, 30], [5, 0]]
    assert f.newest(1).items.tolist() == [[3], [UNKNOWN]]
    assert f.take(np.array([1])).rows["ts_ms"].tolist() == [[5]]


def test_newest_is_featurize() -> None:
    """Cutting features gives what featurizing fewer events gives."""
    table = ItemTable(2)
    table.put(3, np.ones(2))
    windows = [window(*((t, t) for t in range(1, n))) for n in (2, 5, 9)]
    long, short = featurize(windows, table, 64).newest(4), featurize(windows, table, 4)
    for a, b in zip((long.rows, long.items, long.lengths, long.mask), (short.rows, short.items, short.lengths, short.mask), strict=True):
        assert a.tobytes() == b.tobytes()


def test_fitted() -> None:
    """Of a window that is longer than an encoder reads, the newest half stays, then what a quota holds, then the newest others."""
    table, policy = ItemTable(2), Policy(8, 1, 2)
    out = np.zeros(10, DTYPE)
    out["ts_ms"] = range(10)
    out["platform"] = [1, 2, *[3] * 8]
    out["behavior"] = [BEHAVIOR_CODE[b] for b in ("view", "view", "buy", "like", "view", "buy", "view", "view", "view", "view")]
    windows = [VERSION + out.tobytes(), VERSION + out[:3].tobytes()]

    def times(max_len: int, policy: Policy = policy) -> list[list[int]]:
        f = fitted(featurize(windows, table, 64), max_len, policy)
        return [row[mask].tolist() for row, mask in zip(f.rows["ts_ms"], f.mask, strict=True)]

    assert times(10) == [list(range(10)), [0, 1, 2]]
    assert times(8) == [[0, 1, 3, 5, 6, 7, 8, 9], [0, 1, 2]]
    assert times(4) == [[3, 5, 8, 9], [0, 1, 2]]
    assert times(1) == [[9], [2]]
    assert times(4, Policy(8)) == [[6, 7, 8, 9], [0, 1, 2]]


def test_model_inputs() -> None:
    """Inputs have the promised shapes, are finite, and know nothing of what comes later in the window."""
    table = ItemTable(2)
    table.put(1, np.ones(2))
    day = 86_400_000
    whole = model_inputs(featurize([window((day, 1), (day + 1000, 2), (3 * day, 1))], table, 8))
    part = model_inputs(featurize([window((day, 1), (day + 1000, 2))], table, 8))
    assert whole["items"].tolist() == [[1, UNKNOWN, 1]]
    assert whole["seconds"].tolist() == [[0, 1, 2 * day / 1000]]
    assert whole["numeric"].shape == (1, 3, NUMERIC)
    assert whole["times"].shape == (1, 3, TIMES)
    assert whole["known"].tolist() == [[1, 0, 1]]
    for name, value in part.items():
        assert np.isfinite(value).all()
        if name != "lengths":
            np.testing.assert_array_equal(value, whole[name][:, :2])


def by_hand(rows: np.ndarray) -> tuple[list[list[float]], list[list[float]]]:
    """The numeric and time features of the rows of one window, by plain arithmetic."""
    numeric, times, before = list[list[float]](), list[list[float]](), rows["ts_ms"][0] / 1000
    for row in rows:
        has_value, has_dwell = not math.isnan(row["value"]), row["dwell_ds"] != NO_DWELL
        value = min(max(float(row["value"]), -1000.0), 1000.0) if has_value else 0.0
        numeric.append([value, math.log(1 + int(row["dwell_ds"]) / 10) if has_dwell else 0.0, has_value, has_dwell])
        at = int(row["ts_ms"]) / 1000
        turns = [at / period for period in (3600, 86_400, 7 * 86_400, 31_557_600)]
        turns += [(at - before) / (28 * 86_400) ** (k / 7) for k in range(8)]
        circles = [f(2 * math.pi * math.fmod(turn, 1)) for turn in turns for f in (math.sin, math.cos)]
        times.append([*circles, math.log(1 + at - before)])
        before = at
    return numeric, times


def test_model_inputs_by_hand() -> None:
    """Numbers and times of events are what the documentation says, a number that is not known is told from zero, and padding is zero."""
    table, out = ItemTable(2), np.zeros(6, DTYPE)
    table.put(1, np.ones(2))
    out["ts_ms"] = 1_767_323_045_678 + np.cumsum([0, 0, 1500, 70_000, 5_000_000, 900_000_000])
    out["item_key"], out["platform"], out["behavior"] = [1, 2, 1, 1, 2, 1], [1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7]
    out["value"], out["dwell_ds"] = [4.5, np.nan, 0, 5000, -5000, 1], [0, 25, NO_DWELL, 36_000, NO_DWELL - 1, 7]
    made = model_inputs(featurize([VERSION + out.tobytes(), VERSION + out[3:5].tobytes()], table, 8))
    for n, rows in enumerate((out, out[3:5])):
        numeric, times = by_hand(rows)
        np.testing.assert_allclose(made["numeric"][n, : len(rows)], numeric, atol=1e-5)
        np.testing.assert_allclose(made["times"][n, : len(rows)], times, atol=2e-4)
        np.testing.assert_allclose(made["seconds"][n, : len(rows)], (rows["ts_ms"] - rows["ts_ms"][0]) / 1000, rtol=1e-6)
        assert made["platform"][n, : len(rows)].tolist() == rows["platform"].tolist()
        assert made["behavior"][n, : len(rows)].tolist() == rows["behavior"].tolist()
    assert made["known"].tolist() == [[1, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0]]
    assert made["lengths"].tolist() == [6, 2]
    assert not any(made[name][1, 2:].any() for name in made if name != "lengths")


def test_types_of_model_inputs() -> None:
    """Inputs have the types that an exported encoder takes."""
    made = model_inputs(featurize([window((5, 1))], ItemTable(2), 8))
    kinds = {name: value.dtype.name for name, value in made.items()}
    floats = dict.fromkeys(("known", "numeric", "times", "seconds"), "float32")
    assert kinds == {**floats, "items": "int32", "platform": "int64", "behavior": "int64", "lengths": "int64"}


def test_no_windows() -> None:
    """No windows at all are features of no users, and a window without events is padding alone."""
    assert featurize([], ItemTable(2), 8).items.shape == (0, 1)
    f = featurize([VERSION, window((5, 1))], ItemTable(2), 8)
    assert (f.lengths.tolist(), f.mask.tolist()) == ([0, 1], [[False], [True]])
    assert f.take(np.array([], np.int64)).items.shape == (0, 1)


def test_newest_that_fit_already() -> None:
    """Features that are short enough are given back as they are."""
    f = featurize([window((1, 1), (2, 2))], ItemTable(2), 8)
    assert f.newest(2) is f
    assert fitted(f, 2, Policy(2, 1)) is f


def test_other_bytes() -> None:
    """Bytes that are no window are refused."""
    with pytest.raises(ValueError, match="version"):
        featurize([window((1, 1)), b"\x07" + bytes(32)], ItemTable(2), 8)


def test_padded_take() -> None:
    """Windows that are taken out are padded to the longest of them."""
    rows = np.zeros(6, DTYPE)
    rows["ts_ms"] = range(6)
    f = padded(rows, np.arange(1, 7, dtype=np.int32), np.array([1, 2, 3])).take(np.array([1, 0]))
    assert (f.items.tolist(), f.mask.tolist(), f.lengths.tolist()) == ([[2, 3], [1, 0]], [[True, True], [True, False]], [2, 1])
    assert f.rows["ts_ms"].tolist() == [[1, 2], [0, 0]]


def chosen(rows: np.ndarray, max_len: int, policy: Policy) -> list[int]:
    """The times that `fitted` keeps of the rows of one window, one row after the other from the newest on."""
    first, others, held_strong, held_platform = list[int](), list[int](), 0, dict[int, int]()
    for n, row in enumerate(rows[::-1]):
        strong, platform = BEHAVIORS[row["behavior"]] in STRONG, int(row["platform"])
        held = held_platform.get(platform, 0) < policy.per_platform or (strong and held_strong < policy.strong)
        (first if held or n < max_len - max_len // 2 else others).append(int(row["ts_ms"]))
        held_strong, held_platform[platform] = held_strong + strong, held_platform.get(platform, 0) + 1
    return sorted([*first, *others][:max_len])


def test_fitted_by_hand() -> None:
    """Windows of many users, short and long, are cut each by itself, whichever quotas there are."""
    r, table = np.random.default_rng(1), ItemTable(2)
    windows = []
    for length in (*r.integers(1, 30, 40), 0):
        out = np.zeros(length, DTYPE)
        out["ts_ms"], out["platform"] = range(length), r.choice([1, 2, 3], length, p=[0.8, 0.1, 0.1])
        out["behavior"] = r.choice([BEHAVIOR_CODE["view"], BEHAVIOR_CODE["buy"]], length, p=[0.8, 0.2])
        windows.append(out)
    features = featurize([VERSION + out.tobytes() for out in windows], table, 64)
    for policy in (Policy(8, 2), Policy(8, 0, 3), Policy(8, 2, 3), Policy(8)):
        for max_len in (1, 5, 8, 40):
            f = fitted(features, max_len, policy)
            want = [chosen(out, max_len, policy) for out in windows]
            assert [row[mask].tolist() for row, mask in zip(f.rows["ts_ms"], f.mask, strict=True)] == want
            assert f.lengths.tolist() == [len(times) for times in want]
