"""An event log in memory, for training and evaluation. Rows as in windows, sorted as windows sort them; knows no files.

Shape letters: n events, U users, N rows of the item table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from encoder.features import UNKNOWN, Features, ItemTable, padded
from schemas.items import item_key
from schemas.windows import DTYPE, NO_DWELL, Policy, kept


@dataclass(frozen=True)
class Catalogue:
    """All items that can be ranked."""

    table: ItemTable
    names: list[str]
    """Row -> `platform:item_id`; row UNKNOWN is nobody's."""
    platform: np.ndarray
    """(N,) code of the platform of a row; row UNKNOWN has 0."""
    platforms: dict[int, str]
    """Code -> name."""

    @property
    def size(self) -> int:
        """N."""
        return len(self.names)

    def rows_of(self, code: int) -> np.ndarray:
        """(m,) rows of one platform's items."""
        return np.flatnonzero(self.platform == code)


def catalogue(names: Sequence[str], vectors: np.ndarray, codes: Sequence[int], platforms: dict[int, str]) -> Catalogue:
    """`platform:item_id` names, their (len(names), D) tower vectors and platform codes -> Catalogue. The later of two of one name counts."""
    table, kept, platform = ItemTable(vectors.shape[1], max(1024, len(names) + 1)), [""], [0]
    for name, vector, code in zip(names, vectors, codes, strict=True):
        if table.put(item_key(name), vector) == len(kept):
            kept.append(name)
            platform.append(code)
    return Catalogue(table, kept, np.array(platform, np.uint8), platforms)


@dataclass(frozen=True)
class EventLog:
    """Every user's events, oldest first."""

    rows: np.ndarray
    """(n,) of schemas.windows.DTYPE, sorted by user, then (ts_ms, event_id)."""
    bounds: np.ndarray
    """(U + 1,) int64: user u has rows[bounds[u]:bounds[u + 1]]."""
    users: list[str]
    items: np.ndarray
    """(n,) int32 rows of the catalogue, UNKNOWN where an item has no vector."""
    catalogue: Catalogue

    def with_vectors(self, vectors: np.ndarray) -> "EventLog":
        """The same log with other item vectors, (N, D) by row of the catalogue."""
        c = self.catalogue
        return replace(self, catalogue=catalogue(c.names[1:], vectors[1:], c.platform[1:].tolist(), c.platforms))

    @property
    def starts(self) -> np.ndarray:
        """(n,) first row of each event's user."""
        return np.repeat(self.bounds[:-1], np.diff(self.bounds))

    def users_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) number of the user of each of some rows, given as indices."""
        out: np.ndarray = np.searchsorted(self.bounds, rows, "right") - 1
        return out

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """(N,) events of each item among some rows, given as a mask or as indices."""
        found = np.bincount(self.items[rows], minlength=self.catalogue.size)
        found[UNKNOWN] = 0
        return found


def event_log(users: Sequence[str], rows: np.ndarray, catalogue: Catalogue) -> EventLog:
    """(n,) rows of DTYPE in any order and their users -> EventLog. Like the windows' fold, one row a (user, ts_ms, event_id)."""
    names, number = np.unique(np.array(users, object).astype(str), return_inverse=True)
    order = np.lexsort((rows["event_id"], rows["ts_ms"], number))
    rows, number = rows[order], number[order]
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(number) != 0) | (np.diff(rows["ts_ms"]) != 0) | (np.diff(rows["event_id"].astype(np.int64)) != 0)
    rows, number = rows[new], number[new]
    bounds = np.searchsorted(number, np.arange(len(names) + 1)).astype(np.int64)
    return EventLog(rows, bounds, names.tolist(), catalogue.table.index(rows["item_key"]), catalogue)


def spans(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Indices of the rows begin[i]:end[i] of a log, one span after the other."""
    return np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True)])


def windows(log: EventLog, begin: np.ndarray, end: np.ndarray, policy: Policy) -> Features:
    """What a worker's windows hold after the rows begin[i]:end[i] of a log, each of one user and none empty."""
    at, owner = spans(begin, end), np.repeat(np.arange(len(begin)), end - begin)
    keep = kept(log.rows[at], owner, policy)
    at = at[keep]
    return padded(log.rows[at], log.items[at], np.bincount(owner[keep], minlength=len(begin)))


def ordered_rows(items: Sequence[np.ndarray], catalogue: Catalogue, behavior: int) -> np.ndarray:
    """Histories that have an order only, as catalogue rows -> (n,) rows of DTYPE with made-up times a minute apart, all ending together."""
    flat = np.concatenate(items)
    rows = np.zeros(len(flat), DTYPE)
    rows["item_key"], rows["platform"] = catalogue.table.keys[flat], catalogue.platform[flat]
    rows["behavior"], rows["dwell_ds"], rows["value"] = behavior, NO_DWELL, np.nan
    back = np.concatenate([np.arange(len(i))[::-1] for i in items])
    rows["ts_ms"] = 1_700_000_000_000 - back * 60_000
    rows["event_id"] = np.arange(len(flat))
    return rows
