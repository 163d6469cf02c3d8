"""Records of kinds that real producers send and that were once lost, miscounted or fatal. `cases/` holds their values."""

from pathlib import Path
from typing import Any

import pytest

from schemas.events import BEHAVIORS
from schemas.items import Item
from schemas.mapping import Deleted, Mapper, Metadata, PlatformMapping, Rejected

CASES = Path(__file__).with_name("cases")
NOW, AT = 1_709_287_260_000, 1_709_287_200_000  # a minute after 2024-03-01T10:00:00Z, and that
RECORD = Metadata(AT + 7, b"key", ())
OWN = {"account": "customer.id", "item": "line_items[*].product_id", "default_behavior": "buy", "time": "created_at", "time_format": "iso8601"}
WOO = {
    "account": ["customer_id", "billing.email"],
    "item": ["line_items[*].variation_id", "line_items[*].product_id"],
    "default_behavior": "buy",
    "time": "date_created_gmt",
    "time_format": "iso8601",
    "none_values": {"account": [0], "item": [0]},
}
PLAIN = {"preset": "plain", "shared_ids": True}
CLOUD = {
    "ce_specversion": "1.0",
    "ce_type": "com.example.article.read",
    "ce_id": "1",
    "ce_source": "/news",
    "ce_subject": "article-42",
    "ce_time": "2024-03-01T10:00:00Z",
    "content-type": "application/json",
}
# case -> mapping, [(account, item, behavior, ts_ms, dwell)] or the reason
WANTED: list[tuple[str, dict[str, Any], Any]] = [
    ("d01-deep-account", PLAIN, "too-deep"),
    ("d04-id-21-digits-a", PLAIN, [("100000000000000000001", "item-1", "view", AT, None)]),
    ("d04-id-21-digits-b", PLAIN, [("100000000000000000002", "item-1", "view", AT, None)]),
    (
        "d05-filter-through-array",
        PLAIN | {"item": "items[*].id", "filters": [{"path": "items[*].kind", "equals": "product"}]},
        [("user-1", "p1", "view", AT, None)],
    ),
    ("d09-behavior-true", PLAIN | {"behavior": "liked", "behaviors": {"true": "like", "false": "hide"}}, [("user-1", "item-1", "like", AT, None)]),
    ("d11-user-id-with-newline", PLAIN, [("a\nb", "item-1", "view", AT, None)]),
    (
        "g01-like-without-published",
        {"preset": "activitystreams"},
        [("https://m.example/users/a", "https://m.example/notes/1", "like", AT + 7, None)],
    ),
    ("g03-as2-type-array", {"preset": "activitystreams"}, [("a", "b", "like", AT, None)]),
    (
        "g04-openrtb",
        {"account": "user.id", "item": "site.page", "default_behavior": "view", "time": "@timestamp"},
        [("user-1", "https://f.example/1", "view", AT + 7, None)],
    ),
    (
        "g05-line-without-product",
        OWN | {"filters": [{"path": "line_items[*].product_id", "exists": True}]},
        [("7", "11", "buy", AT, None)],
    ),
    ("g06-guest-zero", WOO, [("guest@e.example", "93", "buy", AT, None)]),
    ("g07-not-set", {"preset": "ga4"}, []),
    (
        "g09-properties-as-text",
        {
            "account": "distinct_id",
            "item": "properties.$current_url",
            "behavior": "event",
            "behaviors": {"$pageview": "view"},
            "time": "timestamp",
            "time_format": "iso8601",
            "from_json": "properties",
        },
        [("user-1", "https://s.example/", "view", AT + 123, None)],
    ),
    ("g09-properties-as-text", {"preset": "posthog"}, [("user-1", "https://s.example/", "view", AT + 123, None)]),
    ("g11-schema-registry", PLAIN, [("user-1", "item-1", "view", AT, None)]),
    (
        "g12-xapi-duration",
        {
            "account": "actor.account.name",
            "item": "object.id",
            "behavior": "verb.id",
            "behaviors": {"http://adlnet.gov/expapi/verbs/answered": "click"},
            "time": "timestamp",
            "time_format": "iso8601",
            "dwell": "result.duration",
        },
        [("stu-1", "https://h.example/q1", "click", AT, 45.2)],
    ),
    ("g13-price-as-text", {"preset": "segment"}, [("user-1", "1", "view", AT, None)]),
    ("g15-utc-suffix", PLAIN | {"time_format": "iso8601"}, [("user-1", "item-1", "view", AT, None)]),
    ("g16-nanoseconds", PLAIN | {"time_format": "ns"}, [("user-1", "item-1", "view", AT, None)]),
    ("g16-nanoseconds", PLAIN, "time-in-future"),
    (
        "g17-debezium-after-as-text",
        {
            "account": "payload.after.user_id",
            "item": "payload.after.product_id",
            "default_behavior": "buy",
            "time": "payload.ts_ms",
            "from_json": "payload.after",
        },
        [("1", "2", "buy", AT, None)],
    ),
    ("g19-lower-case-event-name", {"preset": "segment"}, [("user-1", "1", "cart", AT, None)]),
]


def payload(case: str) -> bytes:
    return next(CASES.glob(f"{case}.*")).read_bytes()


def mapper(mapping: dict[str, Any]) -> Mapper:
    return Mapper(PlatformMapping(**{"name": "p", "code": 1, **mapping}), 300_000, 0)


@pytest.mark.parametrize(("case", "mapping", "wanted"), WANTED)
def test_events(case: str, mapping: dict[str, Any], wanted: Any) -> None:
    """A record becomes the events that are meant, or a dead letter that says why not."""
    found = mapper(mapping).events(payload(case), "t", 0, 0, NOW, RECORD)
    if isinstance(found, Rejected):
        assert found.reason == wanted, found
    else:
        assert [(e.account, e.item_id, BEHAVIORS[e.behavior], e.ts_ms, e.dwell_s) for e in found] == wanted
        assert all(e.value is None for e in found)


def test_binary_cloud_event() -> None:
    """Of a CloudEvent in binary mode the attributes are in the record's headers."""
    record = Metadata(AT, None, [(name, value.encode()) for name, value in CLOUD.items()])
    words = {"com.example.article.read": "read"}
    found = mapper({"preset": "cloudevents", "behaviors": words}).events(payload("d03-cloudevents-binary-value"), "t", 0, 0, NOW, record)
    assert not isinstance(found, Rejected)
    assert [(e.account, e.item_id, BEHAVIORS[e.behavior], e.ts_ms) for e in found] == [("user-1", "article-42", "read", AT)]


def test_hint() -> None:
    """A time in another unit than the mapping says is named in the dead letter."""
    found = mapper(PLAIN).events(payload("g16-nanoseconds"), "t", 0, 0, NOW)
    assert isinstance(found, Rejected)
    assert 'in ns it would be 2024-03-01T10:00:00+00:00: time_format = "ns"?' in found.detail


def test_deep_item() -> None:
    """Categories that are nested too deep make a dead letter."""
    found = mapper(PLAIN).items(payload("d02-deep-categories"))
    assert isinstance(found, Rejected)
    assert found.reason == "too-deep"


def test_categories_as_objects() -> None:
    """The category of an object is its name."""
    assert mapper(PLAIN).items(payload("d07-categories-as-objects")) == [Item("p:mug", "Mug", ("Kitchen",))]


def test_tombstone_with_json_key() -> None:
    """An item is taken away by a path into the key; without one, a key of JSON is a dead letter."""
    items = {"id": "id", "title": "title"}
    record = Metadata(AT, payload("d08-debezium-item-tombstone-key"), ())
    assert mapper(PLAIN | {"items": items | {"tombstone": "@key.payload.id"}}).items(None, record) == [Deleted("p:102")]
    found = mapper(PLAIN).items(None, record)
    assert isinstance(found, Rejected)
    assert "items.tombstone" in found.detail
    assert mapper(PLAIN).items(None, Metadata(AT, b"102", ())) == [Deleted("p:102")]
