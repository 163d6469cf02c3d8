"""The item table and the featurizer."""

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encoder.features import NUMERIC, TIMES, UNKNOWN, ItemTable, featurize, fitted, model_inputs
from schemas.events import BEHAVIOR_CODE
from schemas.windows import DTYPE, NO_DWELL, VERSION, Policy

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
