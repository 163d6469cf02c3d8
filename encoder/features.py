"""Windows and item vectors -> arrays. The only featurizer, for training and for serving.

Shape letters: B users, T events (the longest window here, at most max_len), N rows of an item table, D dims of an item vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schemas.windows import DTYPE, NO_DWELL, ROW_BYTES, Policy, check, held, newer

UNKNOWN = 0  # row of an item that is not known; its vector is zero
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Fibonacci hashing
_MOST = (1 << 64) - 1


class ItemTable:
    """Item vectors by 64-bit item key: an open-addressing hash table in numpy, so that a whole batch is looked up at once."""

    def __init__(self, dims: int, capacity: int = 1024) -> None:
        self.dims = dims
        self.vectors = np.zeros((capacity, dims), np.float32)  # (N, D), L2-normalised; row UNKNOWN is zero
        self.keys = np.zeros(capacity, np.uint64)  # (N,)
        self.written = np.zeros(capacity, np.int64)  # (N,) count of writes when a row was last written: what was derived from it is older or not
        self.writes = 0
        self.size = 1
        self._rehash(1 << (4 * capacity - 1).bit_length())  # a power of two

    @classmethod
    def of(cls, keys: np.ndarray, vectors: np.ndarray) -> "ItemTable":
        """A table of (n,) uint64 keys and their (n, D) vectors, all at once; of equal keys the last counts."""
        last = np.sort(len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1])
        table = cls(vectors.shape[1], max(64, len(last) + 1))
        table.writes, table.size = len(last), 1 + len(last)
        there = slice(1, table.size)
        table.keys[there], table.vectors[there], table.written[there] = keys[last], vectors[last], np.arange(1, table.size)
        table._place(np.arange(1, table.size), table._slots)
        return table

    def put(self, key: int, vector: np.ndarray) -> int:
        """Insert or replace the (D,) vector of an item; returns its row."""
        row, at = self._find(key)
        if row == UNKNOWN:
            if self.size == len(self.vectors):
                self.vectors = np.concatenate([self.vectors, np.zeros_like(self.vectors)])
                self.keys = np.concatenate([self.keys, np.zeros_like(self.keys)])
                self.written = np.concatenate([self.written, np.zeros_like(self.written)])
            row, self.size = self.size, self.size + 1
            self.keys[row] = key
            if 2 * self.size > len(self._slots):
                self._rehash(2 * len(self._slots))
            else:
                self._slots[at] = row
        self._write(row, vector)
        return row

    def forget(self, key: int) -> int:
        """Make an item unknown again: its row keeps its place with a zero vector. Returns that row, UNKNOWN if there was none."""
        row, _ = self._find(key)
        if row != UNKNOWN:
            self._write(row, 0)
        return row

    def _find(self, key: int) -> tuple[int, int]:
        """Row of one key, and the slot where it is or belongs: `index` for one, without numpy's price of a call."""
        slots, mask = self._slots, len(self._slots) - 1
        at = (key * int(_MIX) & _MOST) >> 65 - len(slots).bit_length()
        while (row := int(slots[at])) != UNKNOWN and int(self.keys[row]) != key:
            at = (at + 1) & mask
        return row, at

    def _write(self, row: int, vector: np.ndarray | int) -> None:
        self.vectors[row] = vector
        self.writes += 1
        self.written[row] = self.writes

    def index(self, keys: np.ndarray) -> np.ndarray:
        """(n,) uint64 keys -> (n,) int32 rows, UNKNOWN where a key is not here. Also on another thread than the one that puts."""
        slots, mask = self._slots, len(self._slots) - 1
        at = _home(keys, slots)
        rows: np.ndarray = slots[at]
        todo = np.flatnonzero((rows != UNKNOWN) & (self.keys[rows] != keys))
        while todo.size:
            at[todo] = (at[todo] + 1) & mask
            rows[todo] = slots[at[todo]]
            todo = todo[(rows[todo] != UNKNOWN) & (self.keys[rows[todo]] != keys[todo])]
        return rows

    def _rehash(self, size: int) -> None:
        slots = np.zeros(size, np.int32)
        self._place(np.arange(1, self.size), slots)
        self._slots = slots  # only now: who looks something up meanwhile finds it in the old ones

    def _place(self, rows: np.ndarray, slots: np.ndarray) -> None:
        mask, at = len(slots) - 1, _home(self.keys[rows], slots)
        while rows.size:
            free = slots[at] == UNKNOWN
            slots[at[free]] = rows[free]  # of those who want the same one, the last has it
            left = slots[at] != rows
            rows, at = rows[left], (at[left] + 1) & mask


def _home(keys: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Where looking for keys begins in a power of two of slots."""
    return ((keys * _MIX) >> np.uint64(65 - len(slots).bit_length())).astype(np.int64)


@dataclass(frozen=True)
class Features:
    """B windows as padded arrays, oldest event first, padding at the end."""

    rows: np.ndarray  # (B, T) of schemas.windows.DTYPE, zero in the padding
    items: np.ndarray  # (B, T) int32 rows of the item table, UNKNOWN in the padding
    lengths: np.ndarray  # (B,) int64, 1..T
    mask: np.ndarray  # (B, T) bool, True where there is an event

    def newest(self, max_len: int) -> "Features":
        """The newest max_len events of each window."""
        if self.items.shape[1] <= max_len:
            return self
        keep = self.mask & (np.arange(self.items.shape[1]) >= (self.lengths - max_len)[:, None])
        return padded(self.rows[keep], self.items[keep], np.minimum(self.lengths, max_len))

    def take(self, users: np.ndarray) -> "Features":
        """Some of the windows, padded to the longest of them."""
        steps = int(self.lengths[users].max(initial=1))
        return Features(self.rows[users, :steps], self.items[users, :steps], self.lengths[users], self.mask[users, :steps])


def featurize(windows: Sequence[bytes], table: ItemTable, max_len: int) -> Features:
    """Windows -> Features of their newest max_len events. Raises ValueError on bytes that are no window."""
    tail = max_len * ROW_BYTES
    bodies = [check(w)[max(1, len(w) - tail) :] for w in windows]
    flat = np.frombuffer(b"".join(bodies), DTYPE)
    return padded(flat, table.index(flat["item_key"]), np.fromiter(map(len, bodies), np.int64, len(bodies)) // ROW_BYTES)


def padded(flat: np.ndarray, flat_items: np.ndarray, lengths: np.ndarray) -> Features:
    """Rows of B windows one after the other, (n,) of DTYPE, their item rows (n,), and (B,) lengths that sum to n -> Features."""
    steps = int(lengths.max(initial=1))
    mask = np.arange(steps) < lengths[:, None]
    rows = np.zeros(mask.shape, DTYPE)
    rows[mask] = flat
    items = np.zeros(mask.shape, np.int32)
    items[mask] = flat_items
    return Features(rows, items, lengths, mask)


def fitted(features: Features, max_len: int, policy: Policy) -> Features:
    """At most max_len events of each window: the newest half of max_len, then the newest that a quota holds, then the newest others.

    Without quotas these are the newest. The half keeps a vector fresh where quotas alone could fill the encoder.
    """
    if features.items.shape[1] <= max_len or not (policy.per_platform or policy.strong):
        return features.newest(max_len)
    rows, items, owner = features.rows[features.mask], features.items[features.mask], np.nonzero(features.mask)[0]
    first = held(rows, owner, policy) | (newer(owner) < max_len - max_len // 2)
    room = np.where(first, max_len, max_len - np.bincount(owner, first, len(features.lengths))[owner])
    keep = newer(owner * 2 + first) < room
    return padded(rows[keep], items[keep], np.bincount(owner[keep], minlength=len(features.lengths)))


PERIODS_S = np.array([3_600.0, 86_400.0, 604_800.0, 31_557_600.0])  # hour, day, week, year
GAPS_S = np.array([2.0**k for k in np.linspace(0, np.log2(28 * 86_400), 8)])  # 1 s to 28 days, evenly in the logarithm
NUMERIC, TIMES = 4, 2 * len(PERIODS_S) + 2 * len(GAPS_S) + 1


def model_inputs(features: Features) -> dict[str, np.ndarray]:
    """The inputs of a sequence model for B windows, by name. Nothing is relative to the window's end, which would leak the next gap in training.

    items (B, T) int32 rows of the item table, which the caller turns into vectors; known (B, T) 0 or 1; platform and behavior (B, T) int64;
    numeric (B, T, NUMERIC): value, log1p of dwell in seconds, and whether each is there; times (B, T, TIMES): sine and cosine of the time of hour,
    day, week and year and of the gap to the event before on eight scales, and the gap's logarithm; seconds (B, T) since the window's first event;
    lengths (B,) int64.
    """
    rows, mask = features.rows, features.mask
    known = mask & (features.items != UNKNOWN)
    has_value, has_dwell = mask & np.isfinite(rows["value"]), mask & (rows["dwell_ds"] != NO_DWELL)
    numeric = np.empty((*mask.shape, NUMERIC), np.float32)
    numeric[..., 0] = np.clip(np.where(has_value, rows["value"], 0.0), -1e3, 1e3)
    numeric[..., 1] = np.log1p(np.where(has_dwell, rows["dwell_ds"], 0) / 10.0)
    numeric[..., 2], numeric[..., 3] = has_value, has_dwell
    seconds = rows["ts_ms"] / 1000.0
    gap = np.diff(seconds, axis=1, prepend=seconds[:, :1]) * mask
    turns = np.concatenate([seconds[..., None] / PERIODS_S, gap[..., None] / GAPS_S], -1)
    angles = ((turns - np.floor(turns)) * (2 * np.pi)).astype(np.float32)  # whole turns off: then float32 will do, several times as fast
    times = np.empty((*mask.shape, TIMES), np.float32)
    np.sin(angles, out=times[..., 0:-1:2])
    np.cos(angles, out=times[..., 1:-1:2])
    times[..., -1] = np.log1p(np.maximum(gap, 0))
    times *= mask[..., None]
    return {
        "items": features.items,
        "known": known.astype(np.float32),
        "platform": rows["platform"].astype(np.int64),
        "behavior": rows["behavior"].astype(np.int64),
        "numeric": numeric,
        "times": times,
        "seconds": ((seconds - seconds[:, :1]) * mask).astype(np.float32),
        "lengths": features.lengths.astype(np.int64),
    }
