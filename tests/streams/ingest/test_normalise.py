"""Record batches of platforms become rows and dead letters."""

from typing import Any

import orjson

from encoder.towers import load_tower
from schemas.deadletters import decode_dead_letter, encode_dead_letter
from schemas.events import decode_event
from schemas.items import decode_item_vector
from schemas.mapping import Mapper, PlatformMapping
from streams.core.clock import now_ms
from streams.ingest.normalise import map_events, map_items
from streams.transport.light_records import Record

TOWER = load_tower("static")


def mapper(**mapping: Any) -> Mapper:
    return Mapper(PlatformMapping(**{"name": "shop", "code": 1, "preset": "plain", **mapping}), 300_000, 0)


def record(value: Any, key: bytes | None = None, headers: Any = ()) -> Record:
    return Record("t", 1, 7, now_ms(), key, value if value is None or isinstance(value, bytes) else orjson.dumps(value), headers)


def test_events() -> None:
    """One record may hold several events, none, or be a dead letter with its headers; fields that were left out are counted."""
    good = {"account": "a", "item": "i", "behavior": "view", "time": now_ms(), "value": "much"}
    records = [record([good, good | {"item": "j", "value": 1}]), record([]), record(b"<x>", b"k", [("h", b"v")])]
    out = map_events(records, mapper(), "shop")
    assert [decode_event(row).item_id for _, row, _ in out.rows if row] == ["i", "j"]
    assert (out.filtered, dict(out.left_out), [d.reason for d in out.dead]) == (1, {"bad-value": 1}, ["unknown-format"])
    assert decode_dead_letter(encode_dead_letter(out.dead[0])).headers == (("h", b"v"),)


def test_record_metadata() -> None:
    """Account, time and item may come from the key, the time and the headers of a record."""
    r = record({}, b'{"user": {"id": 7}}', [("item", b"old"), ("item", b"new"), ("raw", b"\xff")])
    fields = {"account": "@key.user.id", "item": "@headers.item", "time": "@timestamp", "time_format": "iso8601", "default_behavior": "view"}
    out = map_events([r], mapper(**fields), "shop")
    ((user, row, _),) = out.rows
    assert row is not None
    assert (user, decode_event(row).item_id, decode_event(row).ts_ms) == (b"shop:7", "new", r.timestamp)


def test_items() -> None:
    """A record may hold several items; a deletion takes its place in the order."""
    items = {
        "id": ["after[*].id", "before.id"],
        "title": ["after[*].title"],
        "categories": "after[*].tags[*].name",
        "deleted": {"path": "op", "equals": "d"},
    }
    records = [
        record({"op": "c", "after": [{"id": 1, "title": "Mug", "tags": [{"name": "Kitchen"}, {"name": "Tea"}]}, {"id": 2, "title": "Cup"}]}),
        record({"op": "d", "before": {"id": 1}}),
        record(None, b"2"),
        record(None, b'{"id": 3}'),
    ]
    out = map_items(records, mapper(items=items), "shop", TOWER)
    assert [(key, value is None) for key, value, _ in out.rows] == [(b"shop:1", False), (b"shop:2", False), (b"shop:1", True), (b"shop:2", True)]
    assert decode_item_vector(out.rows[0][1] or b"").categories == ("Kitchen", "Tea")
    assert [d.reason for d in out.dead] == ["no-item"]
