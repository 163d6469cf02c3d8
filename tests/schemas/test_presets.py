"""The shipped mappings on payloads written after each format's public documentation."""

from typing import Any

import orjson
import pytest

from schemas.declaration import presets
from schemas.events import BEHAVIORS, Event
from schemas.mapping import Mapper, PlatformMapping, Rejected

NOW = 1_800_000_000_000
AT = 1_767_323_045_678  # 2026-01-02T03:04:05.678Z
ISO = "2026-01-02T03:04:05.678Z"

SEGMENT = {"type": "track", "userId": "u1", "anonymousId": "a1", "messageId": "ajs-1", "timestamp": ISO, "context": {"library": {"name": "js"}}}
SNOWPLOW = {"app_id": "shop", "platform": "web", "event_id": "c6ef3124-b53a-4b13-a233-0088f79dcbcb", "domain_userid": "d1", "derived_tstamp": ISO}
PRODUCTS = "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1"
ACTION = "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1"
GA4 = {"event_timestamp": "1767323045678000", "user_pseudo_id": "p1", "platform": "WEB"}
CLOUD = {"specversion": "1.0", "type": "read", "source": "/news", "subject": "article-42", "id": "A234-1234-1234", "time": ISO}
ACTIVITY = {"@context": "https://www.w3.org/ns/activitystreams", "id": "https://example.org/activities/1", "published": ISO}


def param(key: str, **value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


# preset, payload, [(account, item, behavior, value)]; dwell apart
CASES: list[tuple[str, dict[str, Any], list[tuple[str, str, str, float | None]]]] = [
    ("segment", SEGMENT | {"event": "Product Viewed", "properties": {"product_id": "507f", "price": 18.99}}, [("u1", "507f", "view", 18.99)]),
    ("segment", SEGMENT | {"userId": None, "event": "Product Added", "properties": {"sku": "G-32"}}, [("a1", "G-32", "cart", None)]),
    (
        "segment",
        SEGMENT | {"event": "Order Completed", "properties": {"total": 27.5, "products": [{"product_id": "1", "price": 19}, {"sku": "2", "price": "3.5"}]}},
        [("u1", "1", "buy", 19.0), ("u1", "2", "buy", 3.5)],
    ),
    ("segment", SEGMENT | {"type": "identify", "traits": {"name": "P"}}, []),
    ("snowplow", SNOWPLOW | {"event": "page_view", "event_name": "page_view", "page_urlpath": "/a/b"}, [("d1", "/a/b", "view", None)]),
    (
        "snowplow",
        SNOWPLOW | {"user_id": "u1", "event_name": "snowplow_ecommerce_action", ACTION: {"type": "add_to_cart"}, PRODUCTS: [{"id": "x1", "price": 9.5}, {"id": "x2"}]},
        [("u1", "x1", "cart", 9.5), ("u1", "x2", "cart", None)],
    ),
    (
        "snowplow",
        SNOWPLOW | {"event": "struct", "event_name": "event", "se_category": "video", "se_action": "like", "se_property": "v7", "se_value": 2.0},
        [("d1", "v7", "like", 2.0)],
    ),
    ("ga4", GA4 | {"event_name": "page_view", "event_params": [param("page_location", string_value="https://a.example/x")]}, [("p1", "https://a.example/x", "view", None)]),
    (
        "ga4",
        GA4 | {"user_id": "u1", "event_name": "purchase", "items": [{"item_id": "SKU_1", "price": 9.99}, {"item_id": "SKU_2", "price": 1}]},
        [("u1", "SKU_1", "buy", 9.99), ("u1", "SKU_2", "buy", 1.0)],
    ),
    ("cloudevents", CLOUD | {"data": {"userId": "u1", "value": 4}}, [("u1", "article-42", "read", 4.0)]),
    ("cloudevents", CLOUD | {"userid": "u2", "datacontenttype": "application/json"}, [("u2", "article-42", "read", None)]),
    ("activitystreams", ACTIVITY | {"type": "Like", "actor": "https://example.org/~martin", "object": "http://example.org/note/1"}, [("https://example.org/~martin", "http://example.org/note/1", "like", None)]),
    (
        "activitystreams",
        ACTIVITY | {"type": "Announce", "actor": {"type": "Person", "id": "acct:m", "name": "M"}, "object": {"type": "Note", "id": "n1", "content": "…"}},
        [("acct:m", "n1", "share", None)],
    ),
    ("plain", {"account": 7, "item": "i", "behavior": "buy", "time": AT, "value": "2.5", "dwell": 3, "id": "e"}, [("7", "i", "buy", 2.5)]),
]  # fmt: skip


def mapper(preset: str, **more: Any) -> Mapper:
    return Mapper(PlatformMapping(name="p", code=3, preset=preset, **more), 300_000, 0)


@pytest.mark.parametrize(("preset", "payload", "wanted"), CASES)
def test_samples(preset: str, payload: dict[str, Any], wanted: list[tuple[str, str, str, float | None]]) -> None:
    """A sample payload becomes the events that it tells of."""
    found = mapper(preset).events(orjson.dumps(payload), "t", 1, 9, NOW)
    assert not isinstance(found, Rejected), found
    assert [(e.account, e.item_id, BEHAVIORS[e.behavior], e.value) for e in found] == wanted
    for e in found:
        assert (e.ts_ms, e.user_id, e.platform, e.topic, e.partition, e.offset) == (AT, f"p:{e.account}", 3, "t", 1, 9)
    assert len({e.event_id for e in found}) == len(found)


def test_every_preset_is_tried() -> None:
    """No mapping is shipped without a sample."""
    assert {c[0] for c in CASES} == set(presets())


def test_dwell() -> None:
    """Engagement time of GA4 is dwell in seconds."""
    payload = GA4 | {
        "event_name": "user_engagement",
        "event_params": [param("page_location", string_value="/x"), param("engagement_time_msec", int_value="1500")],
    }
    (event,) = mapper("ga4").events(orjson.dumps(payload), "t", 0, 0, NOW)  # type: ignore[misc]
    assert isinstance(event, Event)
    assert event.dwell_s == 1.5


def test_own_words() -> None:
    """A platform's own behaviors replace the preset's table."""
    payload = CLOUD | {"type": "com.example.article.finished", "data": {"userId": "u"}}
    assert isinstance(mapper("cloudevents").events(orjson.dumps(payload), "t", 0, 0, NOW), Rejected)
    (event,) = mapper("cloudevents", behaviors={"com.example.article.finished": "read"}).events(orjson.dumps(payload), "t", 0, 0, NOW)  # type: ignore[misc]
    assert BEHAVIORS[event.behavior] == "read"


ITEMS: list[tuple[str, dict[str, Any], tuple[str, str, tuple[str, ...]]]] = [
    ("segment", {"product_id": "1", "name": "Mug", "category": "Kitchen/Mugs", "brand": "B"}, ("p:1", "Mug", ("Kitchen", "Mugs"))),
    ("snowplow", {"id": "1", "name": "Mug", "category": "Kitchen/Mugs"}, ("p:1", "Mug", ("Kitchen", "Mugs"))),
    ("ga4", {"item_id": "1", "item_name": "Mug", "item_category": "Kitchen", "item_category2": "Mugs"}, ("p:1", "Mug", ("Kitchen", "Mugs"))),
    ("cloudevents", {"subject": "1", "data": {"title": "Mug", "categories": ["Kitchen"]}}, ("p:1", "Mug", ("Kitchen",))),
    ("activitystreams", {"id": "1", "name": "Mug", "tag": [{"name": "Kitchen"}]}, ("p:1", "Mug", ("Kitchen",))),
    ("plain", {"id": "1", "title": "Mug", "categories": ["Kitchen", "Kitchen"]}, ("p:1", "Mug", ("Kitchen",))),
]


@pytest.mark.parametrize(("preset", "payload", "wanted"), ITEMS)
def test_items(preset: str, payload: dict[str, Any], wanted: tuple[str, str, tuple[str, ...]]) -> None:
    """An item's JSON becomes its name, title and categories."""
    item = mapper(preset).item(orjson.dumps(payload))
    assert not isinstance(item, Rejected), item
    assert (item.item, item.title, item.categories) == wanted
