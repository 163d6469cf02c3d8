"""What dead letters become once a mapping is mended."""

import orjson
import pytest
from msgspec.structs import replace

from schemas.deadletters import DeadLetter, decode_dead_letter, encode_dead_letter
from schemas.events import decode_event
from schemas.mapping import Mapper, PlatformMapping
from streams.ingest.redrive import Mended, mark_of, mend

NOW = 1_790_000_000_000
ITEMS = frozenset({"shop.items"})
SHOP = {"name": "shop", "code": 1, "preset": "plain", "topic": "shop.in", "items_topic": "shop.items"}
MAPPERS = {
    "shop": Mapper(PlatformMapping.model_validate(SHOP), 300_000, 0),
    "edge": Mapper(
        PlatformMapping(name="edge", code=3, account="@headers.user", item="item", time="@timestamp", default_behavior="view"), 300_000, 0
    ),
    "carts": Mapper(PlatformMapping(name="carts", code=2, account="u", item="lines[*].sku", time="at", default_behavior="cart"), 300_000, 0),
}


def letter(value: object, platform: str = "shop", topic: str = "shop.in", offset: int = 7) -> DeadLetter:
    return DeadLetter("unknown-behavior", "", platform, topic, 2, offset, NOW - 5000, NOW - 4000, b"k", orjson.dumps(value))


def event(behavior: str = "view", **more: object) -> dict[str, object]:
    return {"account": "a", "item": "i", "behavior": behavior, "time": NOW - 9000, **more}


def became(*letters: DeadLetter, sent: set[tuple[tuple[str, int, int], int]] | None = None) -> Mended:
    return mend(letters, MAPPERS, ITEMS, sent or set(), NOW)


def test_mended() -> None:
    """A letter that can be mapped by now becomes its event, by the time and place of its record, and is marked."""
    one = letter(event())
    out = became(one)
    ((user, row, at),) = out.events
    assert row is not None
    assert (user, at, decode_event(row).offset, out.marks, out.items) == (b"shop:a", NOW - 5000, 7, [(mark_of(one), b"", NOW)], {})
    assert not out.still


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(letter(event("gawp")), "unknown-behavior"), (letter({}), "no-account"), (letter(event(), platform=""), "unknown-behavior")],
)
def test_still_bad(bad: DeadLetter, reason: str) -> None:
    """A letter that is as bad as before, or whose platform is not known, is counted by its reason of today, and not marked."""
    out = became(bad, letter(event()))
    assert (dict(out.still), len(out.events), len(out.marks)) == ({reason: 1}, 1, 1)


def test_item() -> None:
    """An item goes back, byte for byte, to where it came from."""
    one = letter({"id": "i", "title": "Mug"}, topic="shop.items")
    out = became(one, letter({"id": "i"}, topic="shop.items"))
    assert out.items == {"shop.items": {2: [(b"k", one.value, NOW - 5000, ())]}}
    assert (len(out.marks), dict(out.still), out.events) == (1, {"no-title": 1}, [])


def test_metadata() -> None:
    """A letter is mapped with the time and headers of its record, and an item goes back with its headers."""
    headers = (("user", b"u1"), ("none", None))
    one = replace(letter({"item": "i"}, platform="edge", topic="edge.in"), headers=headers)
    ((user, row, _),) = became(one).events
    assert (user, decode_event(row or b"").ts_ms) == (b"edge:u1", NOW - 5000)
    item = replace(letter({"id": "i", "title": "Mug"}, topic="shop.items"), headers=headers)
    assert became(decode_dead_letter(encode_dead_letter(item))).items["shop.items"][2][0][3] == headers


def test_sent_in_part() -> None:
    """Of a record with several events those that are in the unified topic already are left out."""
    one = letter({"u": "a", "at": NOW - 1000, "lines": [{"sku": "x"}, {"sku": "y"}, {"sku": "z"}]}, platform="carts", topic="carts.in")
    every = [decode_event(row or b"") for _, row, _ in became(one).events]
    rest = became(one, sent={((e.topic, e.partition, e.offset), e.event_id) for e in every[:2]})
    assert [e.item_id for e in every] == ["x", "y", "z"]
    assert [decode_event(row or b"").item_id for _, row, _ in rest.events] == ["z"]
    assert len(rest.marks) == 1


def test_marks() -> None:
    """Marks differ where records do, also where only the time tells that a topic was made anew."""
    one = letter(event())
    others = [letter(event(), offset=8), letter(event(), topic="other"), DeadLetter("", "", "shop", "shop.in", 2, 7, NOW, NOW, None, None)]
    assert len({mark_of(d) for d in (one, *others)}) == 4
    assert mark_of(one) == mark_of(letter(event("buy")))
