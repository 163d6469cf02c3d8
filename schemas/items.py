"""An item and its vector.

Value of `currents.item-vectors` (key = `platform:item_id`, null = gone): a MessagePack map, field "v" first.

    {"v": 1, "item": "platform:item_id", "title": str, "categories": [str], "space_id": str, "dims": int,
     "vector": little-endian float16 bytes, "at": ms}
"""

from collections.abc import Sequence

import msgpack
import msgspec

from schemas.events import hash64

VERSION = 1
UNIFIED_ITEMS = "unified.item-vectors.msgpack"
"""Name of the items file in a log for training: concatenated values of the topic of item vectors."""
MAX_TITLE = 120  # characters kept of a title: enough to read, bounded for state
MAX_CATEGORIES = 4


class Item(msgspec.Struct, frozen=True):
    """An item's content, from its platform."""

    item: str
    """`platform:item_id`."""
    title: str
    categories: tuple[str, ...] = ()
    text: str = ""
    """Further content for the tower: description, tags, body."""


class ItemVector(msgspec.Struct, frozen=True):
    """An item and its vector, as every worker stores them."""

    item: str
    title: str
    categories: tuple[str, ...]
    space_id: str
    dims: int
    vector: bytes
    """(dims,) little-endian float16."""
    at_ms: int


def item_name(platform: str, item_id: str) -> str:
    """Return the item's name, which is unique over all platforms."""
    return f"{platform}:{item_id}"


def item_key(item: str) -> int:
    """Return the 64-bit key of `platform:item_id` in window rows."""
    return hash64(item)


def content(item: Item) -> str:
    """Return the text that a text tower encodes."""
    return " ".join(part for part in (item.title, ", ".join(item.categories), item.text) if part)


def encode_item_vector(value: ItemVector) -> bytes:
    """ItemVector -> bytes of `currents.item-vectors`."""
    row = {
        "v": VERSION,
        "item": value.item,
        "title": value.title,
        "categories": list(value.categories),
        "space_id": value.space_id,
        "dims": value.dims,
        "vector": value.vector,
        "at": value.at_ms,
    }
    return bytes(msgpack.packb(row))


def decode_item_vector(data: bytes) -> ItemVector:
    """Bytes of `currents.item-vectors` -> ItemVector.

    Raises ValueError if the bytes are no item vector, have another version or a vector of another length.
    """
    row = unpack_map(data, VERSION, "item vector")
    try:
        value = msgspec.convert({**row, "at_ms": row.get("at")}, ItemVector)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"not an item vector: {error!r}") from None
    if len(value.vector) != 2 * value.dims:
        raise ValueError(f"{value.item}: want {2 * value.dims} bytes of float16, got {len(value.vector)}")
    return value


def unpack_map(data: bytes, version: int, what: str) -> dict[str, object]:
    """Decode a MessagePack map whose field "v" is `version`. Raises ValueError, which names `what`, on any other bytes."""
    try:
        row = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ValueError(f"not a {what}: {error!r}") from None
    if not isinstance(row, dict) or row.get("v") != version:
        got = row.get("v") if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"not a {what} of version {version}: {got!r}")
    return row


def clip_categories(categories: Sequence[str]) -> tuple[str, ...]:
    """Return the first MAX_CATEGORIES distinct, non-empty categories."""
    return tuple(dict.fromkeys(c.strip() for c in categories if c.strip()))[:MAX_CATEGORIES]
