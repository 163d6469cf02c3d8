"""A worker's store of all items, and what restoring notes of items that are missing."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from encoder.features import UNKNOWN, ItemTable
from schemas.events import hash64
from schemas.items import Item, ItemVector, decode_item_vector, encode_item_vector, item_key
from schemas.portraits import action_begins, interest_begins
from schemas.profiles import pack_vector
from schemas.windows import DTYPE, VERSION
from streams.core.errors import StorageError
from streams.state.item_store import ItemStore, item_rows
from streams.state.restore import awaited

TP = ("item-vectors", 0)


class Tower:
    space_id, dims = "space", 2

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.tile(np.array([0.6, 0.8], np.float32), (len(texts), 1))


def rows(*names: str, categories: tuple[str, ...] = ("Kitchen",)) -> list[tuple[bytes, bytes | None]]:
    return [(key, value) for key, value, _ in item_rows([Item(n, n.title(), categories) for n in names], Tower(), 5)]


def test_apply_and_load(tmp_path: Path) -> None:
    """Items are known at once and after a restart; only new ones are said to have arrived."""
    store = ItemStore(tmp_path, "space", 2)
    assert store.apply(rows("a:1", "a:2", categories=("Kitchen", "Mugs")), TP, 7) == [item_key("a:1"), item_key("a:2")]
    assert store.apply(rows("a:2", "a:3"), TP, 9) == [item_key("a:3")]
    store.close()
    again = ItemStore(tmp_path, "space", 2)
    assert (again.load(), again.next_offset(TP), again.next_offset(("x", 0))) == (3, 10, 0)
    one, two, none = again.index(["a:1", "a:2", "a:9"])
    assert none == UNKNOWN
    np.testing.assert_allclose(again.table.vectors[one], [0.6, 0.8], atol=1e-3)
    packed = again.category_packed
    assert [packed[c] for c in again.categories[one] if c >= 0] == [interest_begins("Kitchen"), interest_begins("Mugs")]
    assert [packed[c] for c in again.categories[two] if c >= 0] == [interest_begins("Kitchen")]
    assert again.item_packed[two] == action_begins("a:2", "A:2")
    assert again.titles[two] == "A:2"
    again.close()


def test_gone_and_foreign(tmp_path: Path) -> None:
    """A tombstone takes an item's vector away; vectors of another space and bytes that are no item are left out."""
    store = ItemStore(tmp_path, "space", 2)
    store.apply(rows("a:1"), TP, 1)
    store.apply([(b"a:1", None), (b"a:9", b"noise")], TP, 3)
    assert not store.table.vectors[store.index(["a:1"])[0]].any()
    other = encode_item_vector(ItemVector("a:2", "T", (), "other", 2, pack_vector(np.ones(2)), 1))
    assert store.apply([(b"a:2", other)], TP, 4) == []
    assert (store.foreign, store.index(["a:2"])[0]) == (1, UNKNOWN)
    store.close()


def test_many(tmp_path: Path) -> None:
    """The arrays grow with the items and categories."""
    store = ItemStore(tmp_path, "space", 2)
    for start in range(0, 3000, 1000):
        store.apply([r for n in range(start, start + 1000) for r in rows(f"a:{n}", categories=(f"C{n}",))], TP, start)
    last = store.index(["a:2999"])[0]
    assert store.category_packed[store.categories[last][0]] == interest_begins("C2999")
    assert store.item_packed[last] == action_begins("a:2999", "A:2999")
    assert len(set(store.category_order[:3000].tolist())) == 3000
    store.close()


def test_awaited() -> None:
    """Restored windows tell which of their items have no vector, once for each user."""
    table = ItemTable(2)
    table.put(1, np.ones(2))

    def window(*keys: int) -> bytes:
        out = np.zeros(len(keys), DTYPE)
        out["item_key"] = keys
        return VERSION + out.tobytes()

    found = awaited({b"u": window(1, 2, 2), b"v": window(1), b"w": None, b"x": window(3, 2)}, table)
    assert sorted(found) == [((2).to_bytes(8, "big"), b"u"), ((2).to_bytes(8, "big"), b"x"), ((3).to_bytes(8, "big"), b"x")]


def vector_row(name: str, space: str = "space", dims: int = 2, categories: tuple[str, ...] = ("Mugs",), title: str = "T") -> tuple[bytes, bytes]:
    value = ItemVector(name, title, categories, space, dims, pack_vector(np.full(dims, 0.5)), 1)
    return name.encode(), encode_item_vector(value)


def test_item_rows() -> None:
    """A row says the item, what is shown of it, the space and the time, and holds the vector of its content."""
    ((key, value, at_ms),) = item_rows([Item("a:1", "Mug", ("Kitchen", "Mugs"))], Tower(), 5)
    assert (key, at_ms) == (b"a:1", 5)
    assert decode_item_vector(value) == ItemVector("a:1", "Mug", ("Kitchen", "Mugs"), "space", 2, pack_vector(np.array([0.6, 0.8], np.float32)), 5)


def test_what_is_on_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a restart a tombstone still holds, bytes that are no item were not kept, each partition has its own offset, and foreign vectors count."""
    store = ItemStore(tmp_path, "space", 2)
    store.apply([vector_row("a:1"), vector_row("a:2"), vector_row("a:3", "other")], TP, 2)
    with caplog.at_level(logging.ERROR, "currents.items"):  # the error in a record would hold the RocksDB open
        store.apply([(b"a:1", None), (b"a:9", b"noise")], ("item-vectors", 1), 70_000)
    assert store.foreign == 1
    store.close()
    again = ItemStore(tmp_path, "space", 2)
    assert again.load() == 1
    assert (again.foreign, again.index(["a:1", "a:2", "a:3"]).tolist()) == (1, [UNKNOWN, 1, UNKNOWN])
    assert [again.next_offset(("item-vectors", n)) for n in range(3)] == [3, 70_001, 0]
    assert again.size() > 0
    again.close()
    other = ItemStore(tmp_path, "other", 2)
    assert (other.load(), other.foreign, other.index(["a:3"]).tolist()) == (1, 1, [1])
    other.close()


def test_other_dims(tmp_path: Path) -> None:
    """A vector of other dims is left out, under whatever name of a space it comes."""
    store = ItemStore(tmp_path, "space", 2)
    assert store.apply([vector_row("a:1", dims=3)], TP, 0) == []
    assert (store.foreign, store.table.size) == (1, 1)
    store.close()


def test_replaced_item(tmp_path: Path) -> None:
    """An item that comes again keeps its row and has the new title and the new categories alone, at most four."""
    store = ItemStore(tmp_path, "space", 2)
    store.apply([vector_row("a:1", categories=tuple("ABCDE"), title="Old"), vector_row("b:1", title="Other")], TP, 1)
    assert [store.category_packed[c] for c in store.categories[1]] == [interest_begins(name) for name in "ABCD"]
    assert store.apply([vector_row("a:1", categories=("D",), title="New")], TP, 2) == []
    assert [store.category_packed[c] for c in store.categories[1] if c >= 0] == [interest_begins("D")]
    assert store.categories[1].tolist()[1:] == [-1, -1, -1]
    assert (store.titles, store.item_packed[1], store.item_packed[2]) == (
        ["", "New", "Other"],
        action_begins("a:1", "New"),
        action_begins("b:1", "Other"),
    )
    assert store.platform_rows == {"a": [1], "b": [2]}
    store.apply([(b"a:1", None)], TP, 3)
    assert store.apply([vector_row("a:1")], TP, 4) == []
    assert (store.platform_rows["a"], store.index(["a:1"]).tolist()) == ([1], [1])
    np.testing.assert_allclose(store.table.vectors[1], [0.5, 0.5])
    store.close()


def test_grown(tmp_path: Path) -> None:
    """Rows past the first thousand, and categories past the first, keep what is known of every item; free rows are empty."""
    store = ItemStore(tmp_path, "space", 2)
    store.apply([vector_row(f"a:{n}", categories=(f"C{n % 150}", "Mugs"), title=f"T{n}") for n in range(1100)], TP, 1)
    for n in (0, 62, 63, 64, 127, 128, 1022, 1023, 1024, 1099):
        (row,) = store.index([f"a:{n}"])
        assert (row, store.titles[row], store.item_packed[row]) == (n + 1, f"T{n}", action_begins(f"a:{n}", f"T{n}"))
        first, second, *none = store.categories[row].tolist()
        assert (store.category_packed[first], store.category_packed[second]) == (interest_begins(f"C{n % 150}"), interest_begins("Mugs"))
        assert (store.category_order[first], store.category_order[second]) == (hash64(f"C{n % 150}"), hash64("Mugs"))
        assert none == [-1, -1]
    assert (store.categories[1101:] == -1).all()
    assert set(store.item_packed[1101:]) == set(store.category_packed[151:]) == {b""}
    assert len(store.titles) == 1101
    assert store.platform_rows == {"a": list(range(1, 1101))}
    store.close()


def test_noise_among_rows(tmp_path: Path) -> None:
    """Rows around one that is no item, and around a tombstone, are taken."""
    store = ItemStore(tmp_path, "space", 2)
    some = [vector_row("a:1"), (b"a:9", b"noise"), vector_row("a:2"), (b"a:8", None), vector_row("a:3")]
    assert store.apply(some, TP, 4) == [item_key(f"a:{n}") for n in (1, 2, 3)]
    store.close()


def test_folder_that_is_gone(tmp_path: Path) -> None:
    """Rows that cannot be brought to the disk are an error, not lost."""
    store = ItemStore(tmp_path / "items", "space", 2)
    shutil.rmtree(tmp_path / "items")

    def fill() -> None:
        for n in range(100):
            store.apply([vector_row(f"a:{n}", title="T" * (1 << 20))], TP, n)

    with pytest.raises(StorageError, match="items"):
        fill()
    store.close()
