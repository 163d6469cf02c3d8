"""A worker's store of all items, and what restoring notes of items that are missing."""

from pathlib import Path

import numpy as np

from encoder.features import UNKNOWN, ItemTable
from schemas.items import Item, ItemVector, encode_item_vector, item_key
from schemas.portraits import action_begins, interest_begins
from schemas.profiles import pack_vector
from schemas.windows import DTYPE, VERSION
from streams.state.item_store import ItemStore, item_rows
from streams.state.restore import awaited

TP = ("item-vectors", 0)


class Tower:
    space_id, dims = "space", 2

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.tile(np.float32([0.6, 0.8]), (len(texts), 1))


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
