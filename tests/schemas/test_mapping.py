"""Mappings: paths, times, rejections, and that nothing raises on any bytes."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.declaration import presets
from schemas.events import BEHAVIORS, decode_event, encode_event
from schemas.mapping import REASONS, Mapper, Metadata, PlatformMapping, Rejected
from schemas.numbers import FORMATS, duration_s
from schemas.paths import MISSING, getter, parse
from schemas.times import reader

NOW = 1_800_000_000_000
EARLIEST = 946_684_800_000
GOOD: dict[str, Any] = {"account": "a", "item": "i", "behavior": "view", "time": NOW}


def mapper(**more: Any) -> Mapper:
    return Mapper(PlatformMapping(**{"name": "p", "code": 1, "preset": "plain", "shared_ids": True, **more}), 300_000, EARLIEST, 10_000)


def events(raw: bytes | None, **more: Any) -> Any:
    return mapper(**more).events(raw, "t", 0, 0, NOW)


DOC = {"a": {"b": [{"c": 1}, {"c": 2, "k": "x"}]}, "x.y": 3, "l": [], "n": None}
PATHS = [
    ("a.b[0].c", 1),
    ("a.b[-1].c", 2),
    ("a.b[5].c", MISSING),
    ("a.b[k=x].c", 2),
    ("a.b[k=y].c", MISSING),
    ('"x.y"', 3),
    ("a.c", MISSING),
    ("a.b.c", MISSING),
    ("l[0]", MISSING),
    ("n", None),
    ("n.z", MISSING),
]


@pytest.mark.parametrize(("path", "wanted"), PATHS)
def test_paths(path: str, wanted: Any) -> None:
    """A path leads to its value, or to nothing."""
    assert getter(parse(path).steps)(DOC) is wanted or getter(parse(path).steps)(DOC) == wanted


@pytest.mark.parametrize("path", ["", "a..b", ".a", "a.", "a[", "a[]", "a[x]", "a]b"])
def test_bad_paths(path: str) -> None:
    """A path that cannot be read is refused when the settings are."""
    with pytest.raises(ValueError, match=r"path|want"):
        parse(path)


REJECTED: list[tuple[Any, str]] = [
    (b"{", "not-json"),
    (b"\xff\xfe", "not-json"),
    (b"[1]", "wrong-shape"),
    (b'"x"', "wrong-shape"),
    (None, "empty-value"),
    (b"", "empty-value"),
    (b'{"x":"' + b"y" * 10_001 + b'"}', "too-large"),
    ({"account": None}, "no-account"),
    ({"account": ""}, "no-account"),
    ({"account": {"id": 1}}, "no-account"),
    ({"account": "x" * 2000}, "no-account"),
    ({"item": None}, "no-item"),
    ({"item": [1]}, "no-item"),
    ({"behavior": None}, "no-behavior"),
    ({"behavior": "teleported"}, "unknown-behavior"),
    ({"behavior": {"a": 1}}, "unknown-behavior"),
    ({"time": None}, "no-time"),
    ({"time": "soon"}, "bad-time"),
    ({"time": True}, "bad-time"),
    ({"time": [1]}, "bad-time"),
    ({"time": NOW + 300_001}, "time-in-future"),
    ({"time": 10**17}, "time-in-future"),
    ({"time": 1e300}, "time-in-future"),
    ({"time": 5}, "time-too-old"),
    ({"time": -1}, "time-too-old"),
    ({"id": {}}, "bad-id"),
    ({"id": "x" * 2000}, "bad-id"),
    (b'{"x":' + b"[" * 500 + b"]" * 500 + b"}", "too-deep"),
    (b"[" * 4000 + b"]" * 4000, "too-deep"),
    (b"[" * 9000, "too-deep"),
    (b'[{"account": 1}, 2]', "wrong-shape"),
]


@pytest.mark.parametrize(("change", "reason"), REJECTED)
def test_rejected(change: Any, reason: str) -> None:
    """What cannot be used is rejected with the reason, and a detail that is short."""
    raw = orjson.dumps(GOOD | change) if isinstance(change, dict) else change
    found = events(raw)
    assert isinstance(found, Rejected)
    assert found.reason == reason
    assert len(found.detail) < 400


OPTIONAL = [({"value": "much"}, "bad-value"), ({"value": 1e39}, "bad-value"), ({"value": []}, "bad-value"), ({"dwell": -1}, "bad-dwell")]


@pytest.mark.parametrize(("change", "reason"), OPTIONAL)
def test_lenient(change: dict[str, Any], reason: str) -> None:
    """An optional field that cannot be read is left out and counted, or rejects the record where a mapping says so."""
    forgiving = mapper()
    (event,) = forgiving.events(orjson.dumps(GOOD | change), "t", 0, 0, NOW)  # type: ignore[misc]
    assert (event.value, event.dwell_s, dict(forgiving.left_out)) == (None, None, {reason: 1})
    assert events(orjson.dumps(GOOD | change), lenient=[]).reason == reason


TIMES = [
    ("s", 1_700_000_000, 1_700_000_000_000),
    ("s", 1_700_000_000.1239, 1_700_000_000_124),
    ("s", "1700000000", 1_700_000_000_000),
    ("ms", 1_700_000_000_123, 1_700_000_000_123),
    ("us", "1700000000123999", 1_700_000_000_124),
    ("iso8601", "2023-11-14T22:13:20Z", 1_700_000_000_000),
    ("iso8601", "2023-11-14T23:13:20.5+01:00", 1_700_000_000_500),
    ("iso8601", "2023-11-14 22:13:20", 1_700_000_000_000),
]


@pytest.mark.parametrize(("form", "time", "wanted"), TIMES)
def test_times(form: str, time: Any, wanted: int) -> None:
    """Every unit and format gives ms; a time without zone is UTC."""
    (event,) = events(orjson.dumps(GOOD | {"time": time}), time_format=form)
    assert event.ts_ms == wanted


def test_derived_id() -> None:
    """Without an id an exact duplicate has the same one, and any change another; ids of platforms do not meet."""

    def derived(**change: Any) -> int:
        found: int = events(orjson.dumps(GOOD | change))[0].event_id
        return found

    assert derived() == derived() == derived(unrelated=1)
    assert len({derived(), derived(item="j"), derived(time=NOW - 1), derived(behavior="buy"), derived(value=1), derived(account="b")}) == 6
    assert events(orjson.dumps(GOOD | {"id": "x"}))[0].event_id != events(orjson.dumps(GOOD | {"id": "x"}), name="q")[0].event_id


def test_users() -> None:
    """Accounts are users as they are where ids are shared, else platform:account."""
    assert events(orjson.dumps(GOOD))[0].user_id == "a"
    assert events(orjson.dumps(GOOD), shared_ids=False)[0].user_id == "p:a"


def test_value_scale() -> None:
    """A rating scale becomes -1..1."""
    for rating, wanted in ((0.5, -1.0), (2.75, 0.0), (5, 1.0), (9, 1.0)):
        assert events(orjson.dumps(GOOD | {"value": rating}), value_scale=[0.5, 5])[0].value == wanted


FILTERS = [
    ({"path": "behavior", "equals": "view"}, True),
    ({"path": "behavior", "equals": "buy"}, False),
    ({"path": "behavior", "in": ["buy", "view"]}, True),
    ({"path": "behavior", "not_in": ["view"]}, False),
    ({"path": "test", "exists": False}, True),
    ({"path": "test", "exists": True}, False),
    ({"path": "test", "not_in": ["yes"]}, True),
]


@pytest.mark.parametrize(("condition", "passes"), FILTERS)
def test_filters(condition: dict[str, Any], passes: bool) -> None:
    """A record that fails a filter is left out, and is no dead letter."""
    assert len(events(orjson.dumps(GOOD), filters=[condition])) == passes


def test_all_or_nothing() -> None:
    """One bad element of an array rejects the whole record."""
    several = {"item": "things[*].id"}
    good = GOOD | {"things": [{"id": 1}, {"id": 2}]}
    assert [e.item_id for e in events(orjson.dumps(good), **several)] == ["1", "2"]
    bad = events(orjson.dumps(GOOD | {"things": [{"id": 1}, {}]}), **several)
    assert isinstance(bad, Rejected)


MISTAKES = [
    ({"code": 0}, "code"),
    ({"code": 64}, "code"),
    ({"name": "Shop!"}, "name"),
    ({"preset": "nope"}, "want one of activitystreams"),
    ({"behaviors": {"x": "teleport"}}, "want one of unknown, view"),
    ({"item": "a[*].b", "value": "c[*].d"}, "same array"),
    ({"value_scale": [5, 1]}, "lowest, highest"),
    ({"filters": [{"path": "a"}]}, "exactly one of"),
    ({"time_format": "minutes"}, "time_format"),
    ({"colour": "red"}, "colour"),
    ({"account": "a..b"}, "joined by dots"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    """A mapping that cannot work is refused, naming what was expected."""
    with pytest.raises(ValidationError, match=message):
        PlatformMapping(**{"name": "p", "code": 1, "preset": "plain", **change})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.sampled_from(["view", "track", "Like", "1.0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "type", "id", "items", "object", "actor", "data"]), inner),
    max_leaves=20,
)
MAPPERS = [mapper(preset=p) for p in presets()]


def survives(raw: bytes) -> None:
    for one in MAPPERS:
        found = one.events(raw, "t", 0, 0, NOW)
        if isinstance(found, Rejected):
            assert found.reason in REASONS
            found.detail.encode()
        else:
            assert [decode_event(encode_event(e)) for e in found] == found
        record = Metadata(NOW, raw, (("ce_specversion", b"1.0"), ("X-Shopify-Topic", raw)))
        for more in (one.events(raw, "t", 0, 0, NOW, record), one.items(raw, record), one.items(None, record)):
            assert not isinstance(more, Rejected) or more.reason in set(REASONS) - {"failed"}, more
        item = one.item(raw)
        assert not isinstance(item, Rejected) or item.reason in REASONS


@given(st.binary())
def test_any_bytes(raw: bytes) -> None:
    """No bytes make a mapping raise."""
    survives(raw)


@given(st.dictionaries(st.sampled_from([*GOOD, "value", "dwell", "id", "type", "userId", "properties", "object", "actor", "published"]), anything))
def test_any_json(value: dict[str, Any]) -> None:
    """No JSON makes a mapping raise, and whatever it accepts survives the wire."""
    import json

    survives(json.dumps({**GOOD, **value}).encode("utf-8", "surrogatepass"))


NUMBERS = [
    ("currency", "$1,299.00", 1299.0),
    ("currency", "1.299,00 €", 1299.0),
    ("currency", "USD 12.50", 12.5),
    ("currency", "12,5", 12.5),
    ("currency", "1,299", 1299.0),
    ("currency", "1 299,00 kr", 1299.0),
    ("currency", "CHF 1'299.50", 1299.5),
    ("currency", "-$5", -5.0),
    ("currency", "(3.50)", -3.5),
    ("currency", "1,2,3", None),
    ("currency", "free", None),
    ("currency-comma", "1.299 €", 1299.0),
    ("currency-comma", "1,299", 1.299),
    ("plain", "$5", None),
    ("plain", "1e3", 1000.0),
]


@pytest.mark.parametrize(("form", "text", "wanted"), NUMBERS)
def test_numbers(form: str, text: str, wanted: float | None) -> None:
    """Amounts are read with signs and separators where a mapping says so; others are left out."""
    (event,) = events(orjson.dumps(GOOD | {"value": text}), value_format=form)
    assert event.value == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("PT45.2S", 45.2), ("PT1H2M", 3720.0), ("P1DT1S", 86_401.0), ("1:30", 90.0), ("00:01:30.5", 90.5), ("P", None), ("x", None)]
)
def test_durations(text: str, wanted: float | None) -> None:
    """Durations and clock times are read whatever the unit."""
    (event,) = events(orjson.dumps(GOOD | {"dwell": text}), dwell_unit="ms")
    assert event.dwell_s == wanted


AT = 1_709_287_200_000
MORE_TIMES = [
    ("iso8601", "2024-03-01t10:00:00z", AT),
    ("iso8601", "2024-03-01 10:00:00 UTC", AT),
    ("iso8601", "2024-03-01T11:00:00[Europe/Berlin]", AT),
    ("iso8601", "2024-03-01T11:00:00+01:00[Europe/Berlin]", AT),
    ("iso8601", "2024-03-01 11:00:00 +01:00", AT),
    ("iso8601", "2024-03-01T09:59:60Z", AT - 1000),
    ("iso8601", {"$date": "2024-03-01T10:00:00Z"}, AT),
    ("s", {"$date": {"$numberLong": str(AT)}}, AT),
    ("ns", str(AT * 1_000_000 + 1), AT),
    ("rfc2822", "Fri, 01 Mar 2024 11:00:00 +0100", AT),
    ("auto", AT, AT),
    ("auto", AT // 1000, AT),
    ("auto", str(AT * 1000), AT),
    ("auto", AT * 1_000_000, AT),
    ("auto", "2024-03-01T10:00:00Z", AT),
    ("auto", "Fri, 01 Mar 2024 10:00:00 GMT", AT),
]


@pytest.mark.parametrize(("form", "time", "wanted"), MORE_TIMES)
def test_more_times(form: str, time: Any, wanted: int) -> None:
    """Times as databases, mails, Java and Go write them."""
    (event,) = events(orjson.dumps(GOOD | {"time": time}), time_format=form)
    assert event.ts_ms == wanted


@pytest.mark.parametrize("form", ["s", "ms", "us", "ns", "iso8601", "rfc2822", "auto"])
@given(st.text(max_size=40) | st.integers() | st.floats() | st.from_regex(r"[0-9T:.+\- \[\]/ZzA-Z]{0,30}"))
def test_any_time_and_number(form: str, value: Any) -> None:
    """No text and no number makes a reader raise anything but what a mapper takes for a bad value."""
    for read in (reader(form), *FORMATS.values(), duration_s):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            assert isinstance(read(value), int | float)


def test_nested_arrays() -> None:
    """Several [*] in a row give an event for each innermost element; the total of an order never becomes the value of a line."""
    mapping = {"account": "orders[*].who", "item": "orders[*].lines[*].sku", "value": ["orders[*].lines[*].price", "orders[*].total", "total"]}
    orders = [{"who": "a", "total": 9, "lines": [{"sku": "x", "price": 1}, {"sku": "y"}]}, {"who": "b", "total": 8, "lines": [{"sku": "z"}]}]
    found = events(orjson.dumps({"orders": orders, "total": 17, "behavior": "buy", "time": NOW}), **mapping)
    assert [(e.account, e.item_id, e.value) for e in found] == [("a", "x", 1.0), ("a", "y", None), ("b", "z", None)]


WORDS = [
    ({"behavior": "k", "behaviors": {"View": "buy"}}, {"k": "view"}, "view"),
    ({"behavior": "k", "behaviors": {"ADD to Cart": "cart"}}, {"k": "add to cart"}, "cart"),
    ({"behavior": "k", "behaviors": {"1": "like"}}, {"k": 1}, "like"),
    ({"behavior": "k", "behaviors": {"false": "hide"}}, {"k": False}, "hide"),
    ({"behavior_parts": ["c", "k"], "behaviors": {"video/play": "view"}}, {"c": "video", "k": "play"}, "view"),
    ({"behavior_parts": ["c", "k"], "behaviors": {"/play": "view"}}, {"k": "play"}, "view"),
    ({"behavior_parts": ["c", "k"], "behavior": "k"}, {"c": "x", "k": "buy"}, "buy"),
]


@pytest.mark.parametrize(("mapping", "payload", "wanted"), WORDS)
def test_words(mapping: dict[str, Any], payload: dict[str, Any], wanted: str) -> None:
    """Words match in any case, as JSON spells them, and may come of several fields."""
    (event,) = events(orjson.dumps(GOOD | payload), **mapping)
    assert BEHAVIORS[event.behavior] == wanted


FORMS = [
    (b"\x1f\x8b\x08\x00", "gzip"),
    (b"Obj\x01\x04", "Avro"),
    (b"<xml/>", "XML"),
    (b"a=1&b=2", "URL-encoded"),
    (b"{a: 1}", "printed object"),
    (b'{"a":1}\n{"a":2}', "JSON lines"),
    (b"\x82\xa1a\x01\xa1b\x02", "MessagePack"),
    (b"\x0a\x03abc\x10\x01", "Protobuf"),
    (b"eyJhIjoxfQ==", "base64"),
    (b"a,b,c,d", "CSV"),
]


@pytest.mark.parametrize(("raw", "name"), FORMS)
def test_unknown_formats(raw: bytes, name: str) -> None:
    """A value in another format is named in the dead letter."""
    found = events(raw)
    assert (found.reason, name in found.detail) == ("unknown-format", True), found


REFUSED = [
    ({"filters": [{"path": "a[*].b", "exists": True}]}, r"filters\[0\]: path 'a\[\*\].b'"),
    ({"batch": "a[*]"}, "batch: path"),
    ({"from_json": "a[*].b"}, "from_json: path"),
    ({"time": "@timestamp.x"}, "@timestamp alone"),
    ({"account": "@headers"}, "one name"),
    ({"items": {"id": "id", "title": "names[*].text"}}, "title: path"),
    ({"items": {"id": "a[*].id", "title": "b[*].text"}}, "title: path"),
    ({"items": {"id": "id", "title": "t", "tombstone": "id"}}, "tombstone: path"),
    ({"none_values": {"colour": [0]}}, "none_values.colour"),
    ({"lenient": ["account"]}, "lenient"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused(change: dict[str, Any], message: str) -> None:
    """A path that cannot work is refused when settings are read; the error names key, value and what is expected."""
    with pytest.raises(ValidationError, match=message):
        PlatformMapping(**{"name": "p", "code": 1, "preset": "plain", **change})


@pytest.mark.parametrize("name", presets())
def test_dumped_and_read_again(name: str) -> None:
    """A mapping that is written down as it is and read again is the same."""
    one = PlatformMapping.model_validate({"name": "p", "code": 1, "preset": name, "items_topic": "none"})
    assert PlatformMapping(**one.model_dump()) == one


def test_memory_error() -> None:
    """Memory that ran out ends the process; anything else that is raised is a dead letter."""
    one = mapper()
    for error in (MemoryError, RecursionError, ZeroDivisionError):

        def broken(*_: Any, error: type[Exception] = error) -> Any:
            raise error

        one._account = broken
        if error is MemoryError:
            with pytest.raises(MemoryError):
                one.events(orjson.dumps(GOOD), "t", 0, 0, NOW)
        else:
            assert one.events(orjson.dumps(GOOD), "t", 0, 0, NOW).reason == "failed"  # type: ignore[union-attr]
