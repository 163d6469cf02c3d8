"""The interface of an encoder, and what its implementations share: the projected item table, buckets of window lengths, the ID residuals."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from encoder.bundle import Bundle, BundleError, read_residuals
from encoder.features import Features, ItemTable

BUCKETS = (8, 16, 32, 64, 128, 256, 512)
"""A window is padded to the longest window of its bucket."""
ITEMS_AT_ONCE = 4096


class Encoder(Protocol):
    """Windows and item vectors in, L2-normalised vectors out. B users, D dims of a tower's vector, dims of the interest space."""

    version: str
    """What made a vector: `baseline-…` or a bundle's version."""
    space_id: str
    """Vectors are comparable only within one space."""
    dims: int
    max_len: int
    """How many of the newest events it looks at."""

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        """-> (B, dims) float32, L2-normalised; a zero row where every item is unknown."""
        ...

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(n, D) tower vectors and (n,) uint64 item keys, 0 for none -> (n, dims) float32 in the interest space, L2-normalised."""
        ...

    @property
    def projected(self) -> "Projected | None":
        """The item table in the interest space; None where that is the tower's."""
        ...


class Part(NamedTuple):
    """Items to be projected, copied from a table that may be written to meanwhile."""

    rows: np.ndarray  # (n,) of the table
    vectors: np.ndarray  # (n, D) of the tower
    keys: np.ndarray  # (n,) uint64


class Projected:
    """The item table in the interest space, row by row, brought up to date when the table was written to."""

    def __init__(self, project: Callable[[np.ndarray, np.ndarray], np.ndarray], dims: int) -> None:
        self._project, self._dims = project, dims
        self._begin(ItemTable(0, 1))

    def _begin(self, table: ItemTable) -> None:
        self._table, self._rows = table, np.zeros((0, self._dims), np.float32)
        self._seen = self._until = 0  # writes of the table that are in, and that are in once nothing is left of `_todo`
        self._todo = np.zeros(0, np.int64)

    def of(self, table: ItemTable) -> np.ndarray:
        """(N, dims); row UNKNOWN and forgotten items are zero."""
        while (part := self.next(table)) is not None:
            self.put(part)
        return self._rows

    def next(self, table: ItemTable) -> Part | None:
        """What is to be projected next, None where nothing is. Call it where the table is not written to; `put` may follow anywhere."""
        if table is not self._table:
            self._begin(table)
        if len(self._rows) < len(table.vectors):
            grown = np.zeros((len(table.vectors), self._dims), np.float32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        if not len(self._todo) and self._seen < table.writes:
            self._todo, self._until = np.flatnonzero(table.written > self._seen), table.writes
        at = self._todo[:ITEMS_AT_ONCE]
        return Part(at, table.vectors[at], table.keys[at]) if len(at) else None

    def put(self, part: Part) -> np.ndarray:
        """Project a part into its rows; returns them. A part that failed is the next one again."""
        made: np.ndarray = self._project(part.vectors, part.keys) * part.vectors.any(1, keepdims=True)
        self._rows[part.rows] = made
        self._todo = self._todo[len(part.rows) :]
        if not len(self._todo):
            self._seen = self._until
        return made


def buckets(lengths: np.ndarray, chunk: int) -> list[np.ndarray]:
    """(B,) lengths -> indices of windows that go together: of one bucket, at most `chunk` at once."""
    bucket = np.searchsorted(BUCKETS, lengths)
    found = (np.flatnonzero(bucket == b) for b in np.unique(bucket))
    return [here[a : a + chunk] for here in found for a in range(0, len(here), chunk)]


def residual_table(bundle: Bundle) -> ItemTable:
    """The ID residuals by item key; row UNKNOWN is zero. Raises BundleError."""
    keys, residuals = read_residuals(bundle.folder, bundle.manifest.dims)
    if not np.isfinite(residuals).all():
        raise BundleError(f"{bundle.folder}: {int((~np.isfinite(residuals)).any(1).sum())} residuals are not finite")
    return ItemTable.of(keys, residuals)
