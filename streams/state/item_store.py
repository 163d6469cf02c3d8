"""Items: content → item vector → `currents.item-vectors` (agent), and every worker's local store of all of them."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from rocksdict import WriteBatch

from encoder.features import ItemTable
from encoder.towers import Tower
from schemas.events import hash64
from schemas.items import MAX_CATEGORIES, MAX_TITLE, Item, ItemVector, content, encode_item_vector, item_key
from schemas.portraits import action_begins, interest_begins
from schemas.profiles import pack_vector, unpack_vector
from schemas.rows import RowError, check_item, check_key
from streams.core.errors import StorageError
from streams.state.rocksdb import close, failure, open_db, scan, sound

log = logging.getLogger("currents.items")


def item_rows(items: Sequence[Item], tower: Tower, at_ms: int) -> list[tuple[bytes, bytes, int]]:
    """Items -> rows of `currents.item-vectors`. Runs the tower: call it in a thread."""
    vectors = tower.encode([content(i) for i in items])
    rows = []
    for item, vector in zip(items, vectors, strict=True):
        value = ItemVector(item.item, item.title, item.categories, tower.space_id, tower.dims, pack_vector(vector), at_ms)
        rows.append((item.item.encode(), encode_item_vector(value), at_ms))
    return rows


class ItemStore:
    """All item vectors of one space: RocksDB for the next start, and arrays for encoding, ranking and portraits.

    Not thread-safe: every call belongs on the one thread that encodes.
    """

    def __init__(self, folder: Path, space_id: str, dims: int) -> None:
        self.space_id = space_id
        self.table = ItemTable(dims)
        self.categories = np.full((1024, MAX_CATEGORIES), -1, np.int32)  # (N, C) category numbers of each row
        self.category_packed = np.full(64, b"", object)
        self.category_order = np.zeros(64, np.uint64)
        self.item_packed = np.full(1024, b"", object)
        self.titles: list[str] = [""]
        self.platform_rows: dict[str, list[int]] = {}
        """Platform -> rows of the table, forgotten items too."""
        self.foreign = 0
        self._category: dict[str, int] = {}
        self._folder = folder
        self._db = open_db(folder, None, 16 << 20, ("rows", "offsets"))
        self._rows, self._offsets = self._db.get_column_family("rows"), self._db.get_column_family("offsets")

    def load(self) -> int:
        """Rows of earlier runs into memory; returns how many items are known."""
        began = time.perf_counter()
        for name, value in scan(self._folder, self._rows):
            try:
                if (item := check_item(name, value)) is not None:
                    self._put(item)
            except ValueError as error:  # of an earlier release, which took such a row
                log.warning("item %r: left out: %s", name, error)
        if self.table.size > 1:
            log.info("%d items loaded in %.2f s", self.table.size - 1, time.perf_counter() - began)
        return self.table.size - 1

    def apply(
        self,
        rows: Iterable[tuple[bytes | None, bytes | None]],
        tp: tuple[str, int],
        offset: int,
        reject: Callable[[int, RowError], None] = lambda n, error: None,
    ) -> list[int]:
        """Rows of `currents.item-vectors` up to `offset`, to memory and disk; returns the keys of items that were unknown before.

        A row that cannot be used is left out, and `reject` is called with its number and why: what was known of its item stays.
        """
        arrived = []
        batch = WriteBatch(raw_mode=True)
        handle = self._db.get_column_family_handle("rows")
        for n, (name, value) in enumerate(rows):
            try:
                item = check_item(name, value)
                if item is not None and item.space_id == self.space_id and item.dims != self.table.dims:
                    self.foreign += 1
                    raise RowError("dims", f"{item.dims} dims in space {self.space_id}, which has {self.table.dims}")
            except RowError as error:
                reject(n, error)
                continue
            if item is None:
                batch.delete(name, handle)
                self.table.forget(item_key(check_key(name)))
                continue
            batch.put(name, value, handle)
            if (key := self._put(item)) is not None:
                arrived.append(key)
        batch.put(f"{tp[0]}/{tp[1]}".encode(), offset.to_bytes(8, "big"), self._db.get_column_family_handle("offsets"))
        try:
            self._db.write(batch)
        except Exception as error:  # rocksdict raises bare Exception
            raise failure(self._folder, error) from None
        return arrived

    def next_offset(self, tp: tuple[str, int]) -> int:
        """Where reading a partition of `currents.item-vectors` goes on."""
        try:
            found = self._offsets.get(f"{tp[0]}/{tp[1]}".encode())
        except Exception as error:  # rocksdict raises bare Exception
            raise failure(self._folder, error) from None
        return int.from_bytes(found, "big") + 1 if found else 0

    def _put(self, item: ItemVector) -> int | None:
        """Into memory; the item's key if it was unknown. Vectors of another space are no vectors here."""
        if item.space_id != self.space_id or item.dims != self.table.dims:
            self.foreign += 1
            return None
        key, before = item_key(item.item), self.table.size
        row = self.table.put(key, unpack_vector(item.vector))
        if row >= len(self.categories):
            self.categories = np.concatenate([self.categories, np.full_like(self.categories, -1)])
            self.item_packed = np.concatenate([self.item_packed, np.full_like(self.item_packed, b"")])
        if row == len(self.titles):
            self.titles.append("")
            self.platform_rows.setdefault(item.item.partition(":")[0], []).append(row)
        self.categories[row] = -1
        for column, name in enumerate(item.categories[:MAX_CATEGORIES]):
            self.categories[row, column] = self._number(name[:MAX_TITLE])
        title = item.title[:MAX_TITLE]
        self.item_packed[row] = action_begins(item.item, title)
        self.titles[row] = title
        return key if self.table.size > before else None

    def _number(self, category: str) -> int:
        number = self._category.setdefault(category, len(self._category))
        if number == len(self.category_packed):
            self.category_packed = np.concatenate([self.category_packed, np.full_like(self.category_packed, b"")])
            self.category_order = np.concatenate([self.category_order, np.zeros_like(self.category_order)])
        if not self.category_packed[number]:
            self.category_packed[number] = interest_begins(category)
            self.category_order[number] = hash64(category)
        return number

    def index(self, items: Sequence[str]) -> np.ndarray:
        """(n,) rows of `platform:item_id` names, UNKNOWN where there is no vector."""
        return self.table.index(np.array([item_key(i) for i in items], np.uint64))

    def size(self) -> int:
        """Bytes on disk."""
        return int(self._rows.property_int_value("rocksdb.total-sst-files-size") or 0)

    def close(self) -> None:
        """Close the files."""
        close(self._folder, (self._rows, self._offsets, self._db))


def load_items(folder: Path, space_id: str, dims: int) -> ItemStore:
    """The store of a data folder with what it knew; empty where it was damaged: it is read again from the topic."""

    def make() -> ItemStore:
        store = ItemStore(folder, space_id, dims)
        try:
            store.load()
        except StorageError:
            store.close()
            raise
        return store

    return sound(folder, make)
