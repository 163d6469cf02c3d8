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
PROMOTIONS = "contexts_com_snowplowanalytics_snowplow_ecommerce_promotion_1"
ACTION = "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1"
GA4 = {"event_timestamp": "1767323045678000", "user_pseudo_id": "p1", "platform": "WEB"}
CLOUD = {"specversion": "1.0", "type": "read", "source": "/news", "subject": "article-42", "id": "A234-1234-1234", "time": ISO}
ACTIVITY = {"@context": "https://www.w3.org/ns/activitystreams", "id": "https://example.org/activities/1", "published": ISO}

POSTHOG = {"uuid": "0190-1", "event": "$pageview", "distinct_id": "u1", "timestamp": ISO}
AMPLITUDE = {"user_id": "u1@e.example", "device_id": "d1", "time": AT, "insert_id": "i-1"}
ORDER = {
    "id": 450789469,
    "created_at": "2026-01-02T04:04:05.678+01:00",
    "total_price": "409.94",
    "customer": {"id": 207119551, "email": "b@e.example"},
}
PIXEL = {
    "id": "sh-1",
    "clientId": "c1",
    "type": "standard",
    "timestamp": ISO,
    "context": {"document": {"location": {"href": "https://s.example/mug"}}},
}
MIXPANEL = {"event": "Product Viewed", "properties": {"time": AT, "distinct_id": "u1", "$insert_id": "m1", "product_id": "p1"}}
WOO = {"id": 727, "status": "processing", "customer_id": 0, "billing": {"email": "g@e.example"}, "date_created_gmt": "2026-01-02T03:04:05.678"}
XAPI = {
    "id": "fd41c918-b88b-4b20-a0a5-a4c32391aaa0",
    "actor": {"objectType": "Agent", "mbox": "mailto:a@e.example"},
    "verb": {"id": "http://adlnet.gov/expapi/verbs/experienced", "display": {"en-US": "experienced"}},
    "object": {"id": "https://h.example/course/1", "objectType": "Activity"},
    "timestamp": ISO,
}


def param(key: str, **value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


# preset, payload, [(account, item, behavior, value)]; dwell apart
CASES: list[tuple[str, Any, list[tuple[str, str, str, float | None]]]] = [
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
    ("segment", SEGMENT | {"type": "page", "name": "Home", "properties": {"title": "Welcome", "url": "https://i.example/"}}, [("u1", "https://i.example/", "view", None)]),
    ("segment", SEGMENT | {"type": "screen", "name": "Inbox", "properties": {}}, [("u1", "Inbox", "view", None)]),
    ("segment", SEGMENT | {"event": "products searched", "properties": {"query": "blue towels"}}, [("u1", "blue towels", "search", None)]),
    ("segment", SEGMENT | {"event": "Promotion Clicked", "properties": {"promotion_id": "promo_1"}}, [("u1", "promo_1", "click", None)]),
    (
        "segment",
        SEGMENT | {"userId": "null", "event": "Order Completed", "properties": {"revenue": 27.5, "value": 30, "products": [{"product_id": "1"}, {"product_id": "2", "price": "$3"}]}},
        [("a1", "1", "buy", None), ("a1", "2", "buy", None)],
    ),
    ("segment", {"batch": [SEGMENT | {"event": "Product Viewed", "properties": {"product_id": "1"}}, SEGMENT | {"type": "group"}], "sentAt": ISO}, [("u1", "1", "view", None)]),
    ("snowplow", SNOWPLOW | {"user_id": "u1", "event_name": "snowplow_ecommerce_action", ACTION: {"type": "promo_click"}, PROMOTIONS: [{"id": "promo_1"}]}, [("u1", "promo_1", "click", None)]),
    ("snowplow", SNOWPLOW | {"event_name": "snowplow_ecommerce_action", ACTION: {"type": "refund"}, PRODUCTS: [{"id": "x1", "price": 2}]}, [("d1", "x1", "hide", 2.0)]),
    ("snowplow", SNOWPLOW | {"event_name": "snowplow_ecommerce_action", ACTION: {"type": "trns_error"}}, []),
    ("snowplow", SNOWPLOW | {"event_name": "transaction_item", "ti_sku": "s1", "ti_price": 5}, [("d1", "s1", "buy", 5.0)]),
    ("snowplow", SNOWPLOW | {"event_name": "screen_view", "unstruct_event_com_snowplowanalytics_mobile_screen_view_1": {"name": "Home"}}, [("d1", "Home", "view", None)]),
    ("ga4", GA4 | {"event_name": "screen_view", "event_params": [param("firebase_screen", string_value="Home")], "items": []}, [("p1", "Home", "view", None)]),
    ("ga4", GA4 | {"event_name": "video_start", "event_params": [param("page_location", string_value="/v")]}, [("p1", "/v", "view", None)]),
    ("ga4", GA4 | {"event_name": "session_start", "event_params": [param("page_location", string_value="/v")]}, []),
    ("ga4", GA4 | {"event_name": "view_item", "items": [{"item_id": "(not set)", "item_name": "Mug"}, {"item_id": "(not set)"}]}, [("p1", "Mug", "view", None)]),
    ("cloudevents", CLOUD | {"data": '{"userId": "u1"}', "datacontenttype": "application/json"}, [("u1", "article-42", "read", None)]),
    ("cloudevents", CLOUD | {"data_base64": "eyJ1c2VySWQiOiAidTEifQ=="}, [("u1", "article-42", "read", None)]),
    ("activitystreams", ACTIVITY | {"type": ["Like", "schema:LikeAction"], "actor": ["a", "b"], "object": [{"id": "n1"}, "n2"]}, [("a", "n1", "like", None), ("a", "n2", "like", None)]),
    ("activitystreams", ACTIVITY | {"type": "as:Follow", "actor": [{"id": "a"}], "object": {"type": "Link", "href": "n1"}}, [("a", "n1", "follow", None)]),
    ("activitystreams", ACTIVITY | {"type": "Undo", "actor": "a", "object": {"type": "Like", "object": "n1"}}, []),
    ("posthog", POSTHOG | {"properties": {"$current_url": "https://s.example/"}}, [("u1", "https://s.example/", "view", None)]),
    ("posthog", POSTHOG | {"event": "product added", "properties": '{"product_id": "p1", "price": 3}'}, [("u1", "p1", "cart", 3.0)]),
    ("posthog", {"api_key": "k", "batch": [{"event": "$screen", "properties": {"distinct_id": "u1", "$screen_name": "Home"}, "timestamp": ISO}, POSTHOG | {"event": "$identify"}]}, [("u1", "Home", "view", None)]),
    ("posthog", {"hook": {"id": "h"}, "event": POSTHOG | {"properties": {"$current_url": "/a"}}, "person": {"id": "x"}}, [("u1", "/a", "view", None)]),
    ("posthog", POSTHOG | {"event": "Order Completed", "properties": {"revenue": 9, "value": 9, "products": [{"product_id": "p1", "price": 4}, {"sku": "p2"}]}}, [("u1", "p1", "buy", 4.0), ("u1", "p2", "buy", None)]),
    ("amplitude", AMPLITUDE | {"event_type": "Product Viewed", "event_properties": {"product_id": "p1", "price": 4}}, [("u1@e.example", "p1", "view", 4.0)]),
    (
        "amplitude",
        {"api_key": "k", "events": [AMPLITUDE | {"event_type": "[Amplitude] Page Viewed", "event_properties": {"[Amplitude] Page URL": "https://s.example/"}}, AMPLITUDE | {"event_type": "session_start"}]},
        [("u1@e.example", "https://s.example/", "view", None)],
    ),
    (
        "amplitude",
        {"user_id": None, "device_id": "d1", "event_type": "revenue_amount", "event_time": "2026-01-02 03:04:05.678000", "event_properties": {"$productId": "p1", "$price": 3.5, "$revenue": 7}},
        [("d1", "p1", "buy", 3.5)],
    ),
    ("shopify", ORDER | {"line_items": [{"id": 1, "product_id": 632910392, "price": "199.00"}, {"id": 2, "product_id": None, "title": "Tip", "price": "5.00"}]}, [("207119551", "632910392", "buy", 199.0)]),
    ("shopify", ORDER | {"customer": None, "email": "g@e.example", "line_items": [{"product_id": 1}]}, [("g@e.example", "1", "buy", None)]),
    ("shopify-pixel", PIXEL | {"name": "product_viewed", "data": {"productVariant": {"id": "1", "product": {"id": "p1", "title": "Mug"}, "price": {"amount": 9.5}}}}, [("c1", "p1", "view", 9.5)]),
    (
        "shopify-pixel",
        PIXEL | {"name": "checkout_completed", "data": {"checkout": {"order": {"id": "o", "customer": {"id": "k1"}}, "totalPrice": {"amount": 30}, "lineItems": [{"variant": {"product": {"id": "p1"}, "price": {"amount": 10}}}, {"variant": {"product": {"id": "p2"}}}]}}},
        [("k1", "p1", "buy", 10.0), ("k1", "p2", "buy", None)],
    ),
    ("shopify-pixel", PIXEL | {"name": "page_viewed", "data": {}}, [("c1", "https://s.example/mug", "view", None)]),
    ("shopify-pixel", PIXEL | {"name": "search_submitted", "data": {"searchResult": {"query": "mug"}}}, [("c1", "mug", "search", None)]),
    ("mixpanel", MIXPANEL, [("u1", "p1", "view", None)]),
    ("mixpanel", [MIXPANEL, {"event": "$mp_web_page_view", "properties": {"time": AT / 1000, "distinct_id": "$device:1", "current_url": "/a"}}], [("u1", "p1", "view", None), ("$device:1", "/a", "view", None)]),
    ("mixpanel", {"event": "Product Added", "properties": orjson.dumps(MIXPANEL["properties"]).decode()}, [("u1", "p1", "cart", None)]),
    ("xapi", XAPI, [("mailto:a@e.example", "https://h.example/course/1", "view", None)]),
    ("xapi", {"statements": [XAPI | {"actor": {"account": {"homePage": "https://h.example", "name": "s1"}}, "result": {"score": {"scaled": 0.5}}}], "more": ""}, [("s1", "https://h.example/course/1", "view", 0.5)]),
    ("xapi", XAPI | {"verb": {"id": "http://adlnet.gov/expapi/verbs/voided"}}, []),
    ("woocommerce", WOO | {"customer_id": 26, "line_items": [{"product_id": 93, "variation_id": 0, "price": 8.5, "total": "17.00"}, {"product_id": 22, "price": "3"}]}, [("26", "93", "buy", 8.5), ("26", "22", "buy", 3.0)]),
    ("woocommerce", WOO | {"status": "refunded", "line_items": [{"product_id": 93}, {"product_id": 0, "variation_id": 0}]}, [("g@e.example", "93", "hide", None)]),
    (
        "matomo",
        {
            "visitorId": "c2f1",
            "userId": None,
            "actionDetails": [
                {"type": "action", "url": "https://s.example/a", "timestamp": AT / 1000, "timeSpent": "12"},
                {"type": "ecommerceOrder", "timestamp": AT / 1000, "revenue": "30", "itemDetails": [{"itemSKU": "p1", "itemPrice": 10}, {"itemSKU": "p2"}]},
                {"type": "goal", "timestamp": AT / 1000},
            ],
        },
        [("c2f1", "https://s.example/a", "view", None), ("c2f1", "p1", "buy", 10.0), ("c2f1", "p2", "buy", None)],
    ),
    ("matomo", {"visitorId": "c2f1", "userId": "u1", "actionDetails": [{"type": "search", "siteSearchKeyword": "mug", "url": "/s", "timestamp": AT / 1000}]}, [("u1", "mug", "search", None)]),
]  # fmt: skip


def mapper(preset: str, **more: Any) -> Mapper:
    return Mapper(PlatformMapping(name="p", code=3, preset=preset, **more), 300_000, 0)


@pytest.mark.parametrize(("preset", "payload", "wanted"), CASES)
def test_samples(preset: str, payload: Any, wanted: list[tuple[str, str, str, float | None]]) -> None:
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
    """A platform's own behaviors add to the preset's table."""
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
