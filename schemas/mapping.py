"""A platform's bytes -> unified events and items, or Rejected with the reason. Compiled at construction; nothing raises on any bytes."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from schemas.declaration import Filter, PlatformMapping
from schemas.events import BEHAVIOR_CODE, BEHAVIORS, MAX_TS_MS, MAX_VALUE, VERSION, Event, canonical_user, hash64
from schemas.items import MAX_TITLE, Item, clip_categories, item_name
from schemas.paths import MISSING, Get, getter, parse

__all__ = ["REASONS", "Mapper", "PlatformMapping", "Rejected"]

REASONS = (
    "empty-value", "too-large", "not-json", "wrong-shape", "no-account", "no-item", "no-time", "bad-time", "time-in-future", "time-too-old",
    "no-behavior", "unknown-behavior", "bad-id", "bad-value", "bad-dwell", "no-title",
)  # fmt: skip
MAX_ID = 1024  # characters of an id
MAX_TEXT = 4000  # characters of an item's text that the tower sees
_MS = {"s": 1000.0, "ms": 1.0, "us": 0.001}


class Rejected(msgspec.Struct, frozen=True):
    """Why a record cannot be used."""

    reason: str
    """One of REASONS."""
    detail: str
    """Where, what was wanted, what was there."""


class _Bad(Exception):
    def __init__(self, reason: str, field: str, wanted: str, got: Any) -> None:
        shown = "nothing" if got is MISSING or got is None else repr(got)[:100]
        super().__init__(reason)
        self.rejected = Rejected(reason, f"{field}: want {wanted}, got {shown}".encode("utf-8", "replace").decode())


class Mapper:
    """Reads the JSON of one platform."""

    def __init__(self, mapping: PlatformMapping, max_skew_ms: int, earliest_ms: int, max_bytes: int = 2_000_000) -> None:
        m = self.mapping = mapping
        self._skew_ms, self._earliest_ms, self._max_bytes = max_skew_ms, earliest_ms, max_bytes
        self._filters = [_condition(f) for f in m.filters]
        fields = (m.account, m.item, m.behavior, m.time, m.value, m.dwell, m.event_id)
        arrays = {p.array for field in fields for p in map(parse, field)} - {None}
        self._array: Get | None = getter(next(iter(arrays))) if arrays else None  # type: ignore[arg-type]
        self._account, self._item, self._behavior, self._time, self._value, self._dwell, self._id = map(_first, fields)
        self._behaviors = {**BEHAVIOR_CODE, **{word: BEHAVIOR_CODE[name] for word, name in m.behaviors.items()}}
        self._default = BEHAVIOR_CODE[m.default_behavior] if m.default_behavior else None
        self._iso = m.time_format == "iso8601"
        self._to_ms = _MS.get(m.time_format, 1.0)
        self._dwell_s = 1.0 if m.dwell_unit == "s" else 0.001
        low, high = m.value_scale or (0.0, 0.0)
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        i = m.items
        self._separator = i.separator if i else None
        self._content = None if i is None else (_first(i.id), _first(i.title), [_first((p,)) for p in i.text], [_first((p,)) for p in i.categories])

    def events(self, raw: bytes | None, topic: str, partition: int, offset: int, now_ms: int) -> list[Event] | Rejected:
        """The events of one record, none if a filter leaves it out. One bad element rejects the whole record."""
        try:
            doc = self._load(raw)
            for passes in self._filters:
                if not passes(doc):
                    return []
            elements = self._array(doc) if self._array is not None else None
            if type(elements) is list and elements:
                return [self._event(doc, e, str(i), topic, partition, offset, now_ms) for i, e in enumerate(elements)]
            return [self._event(doc, MISSING, "", topic, partition, offset, now_ms)]
        except _Bad as bad:
            return bad.rejected

    def item(self, raw: bytes | None) -> Item | Rejected:
        """The item of one record."""
        try:
            doc = self._load(raw)
            if self._content is None:
                raise _Bad("wrong-shape", "items", f"a mapping of items for platform {self.mapping.name}", None)
            get_id, get_title, texts, categories = self._content
            name = _text("no-item", "items.id", get_id(doc, MISSING))
            title = get_title(doc, MISSING)
            if type(title) is not str or not title.strip():
                raise _Bad("no-title", "items.title", "text", title)
            text = " ".join(t for get in texts for t in _strings(get(doc, MISSING), None))
            named = [c for get in categories for c in _strings(get(doc, MISSING), self._separator)]
            item = Item(
                item_name(self.mapping.name, name), title.strip()[:MAX_TITLE], clip_categories([c[:MAX_TITLE] for c in named]), text[:MAX_TEXT]
            )
            for part in (item.title, item.text, *item.categories):
                _utf8("wrong-shape", "items", part)
            return item
        except _Bad as bad:
            return bad.rejected

    def _load(self, raw: bytes | None) -> dict[str, Any]:
        if not raw:
            raise _Bad("empty-value", "record", "JSON", None)
        if len(raw) > self._max_bytes:
            raise _Bad("too-large", "record", f"at most {self._max_bytes} bytes", f"{len(raw)} bytes")
        try:
            doc = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise _Bad("not-json", "record", f"JSON ({error})", raw[:60]) from None
        if type(doc) is not dict:
            raise _Bad("wrong-shape", "record", "a JSON object", type(doc).__name__)
        return doc

    def _event(self, doc: Any, element: Any, index: str, topic: str, partition: int, offset: int, now_ms: int) -> Event:
        m = self.mapping
        account = _text("no-account", "account", self._account(doc, element))
        item = _text("no-item", "item", self._item(doc, element))
        behavior = self._code(self._behavior(doc, element))
        ts_ms = self._when(self._time(doc, element), now_ms)
        value = self._number(self._value(doc, element))
        dwell_s = self._seconds(self._dwell(doc, element))
        own = self._id(doc, element)
        user = _utf8("no-account", "account", canonical_user(m.name, account, m.shared_ids))
        if own is MISSING or own is None or own == "":
            event_id = hash64(m.name, user, str(ts_ms), BEHAVIORS[behavior], item, repr(value), repr(dwell_s))
        else:
            event_id = hash64(m.name, _text("bad-id", "event_id", own), index)
        return Event(VERSION, user, ts_ms, event_id, m.code, behavior, item, account, value, dwell_s, topic, partition, offset)

    def _code(self, word: Any) -> int:
        if word is MISSING or word is None or word == "":
            if self._default is None:
                raise _Bad("no-behavior", "behavior", "a word", word)
            return self._default
        code = self._behaviors.get(word) if type(word) is str else self._behaviors.get(str(word))
        if code is None:
            raise _Bad("unknown-behavior", "behavior", "a word of the table `behaviors`", word)
        return code

    def _when(self, time: Any, now_ms: int) -> int:
        if time is MISSING or time is None or time == "":
            raise _Bad("no-time", "time", "a time", time)
        try:
            if self._iso:
                at = datetime.fromisoformat(time)
                ts_ms = round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
            elif type(time) is int:
                ts_ms = time if self._to_ms == 1.0 else round(time * self._to_ms)
            else:
                ts_ms = round((float(time) if type(time) in (str, float) else math.nan) * self._to_ms)
        except (ValueError, TypeError, OverflowError):
            raise _Bad("bad-time", "time", self.mapping.time_format, time) from None
        if ts_ms > now_ms + self._skew_ms or ts_ms > MAX_TS_MS:
            raise _Bad("time-in-future", "time", f"at most {self._skew_ms} ms ahead", time)
        if ts_ms < self._earliest_ms or ts_ms < 0:
            raise _Bad("time-too-old", "time", "a time after ingest.earliest", time)
        return ts_ms

    def _number(self, value: Any) -> float | None:
        number = _float("bad-value", "value", value)
        if number is None or not self._half:
            return number
        return max(-1.0, min(1.0, (number - self._middle) / self._half))

    def _seconds(self, dwell: Any) -> float | None:
        seconds = _float("bad-dwell", "dwell", dwell)
        if seconds is not None and seconds < 0:
            raise _Bad("bad-dwell", "dwell", "a duration", dwell)
        return None if seconds is None else seconds * self._dwell_s


def _first(paths: Sequence[str]) -> Callable[[Any, Any], Any]:
    """The first of several paths that is there: (document, array element) -> value or MISSING."""
    compiled = [(p.array is not None, getter(p.steps) if p.steps else (lambda e: e)) for p in map(parse, paths)]
    if not compiled:
        return lambda doc, element: MISSING
    if len(compiled) == 1 and not compiled[0][0]:
        only = compiled[0][1]
        return lambda doc, element: only(doc)

    def first(doc: Any, element: Any) -> Any:
        for inside, get in compiled:
            if inside and element is MISSING:
                continue
            value = get(element if inside else doc)
            if value is not MISSING and value is not None and value != "":
                return value
        return MISSING

    return first


def _condition(f: Filter) -> Callable[[Any], bool]:
    get = _first((f.path,))
    if f.exists is not None:
        return lambda doc: (get(doc, MISSING) not in (MISSING, None)) == f.exists
    wanted = f.one_of if f.one_of is not None else f.none_of if f.none_of is not None else (f.equals,)
    negative = f.none_of is not None
    return lambda doc: (get(doc, MISSING) in wanted) != negative


def _text(reason: str, field: str, value: Any) -> str:
    """An id: text as it is, whole numbers as text."""
    if type(value) is int:
        value = str(value)
    elif type(value) is float and value.is_integer():
        value = str(int(value))
    if type(value) is not str or not value or len(value) > MAX_ID:
        raise _Bad(reason, field, f"an id of 1 to {MAX_ID} characters", value)
    return _utf8(reason, field, value)


def _utf8(reason: str, field: str, value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Bad(reason, field, "Unicode text", value) from None
    if len(value) > MAX_ID and reason == "no-account":
        raise _Bad(reason, field, f"an id of 1 to {MAX_ID} characters", value)
    return value


def _float(reason: str, field: str, value: Any) -> float | None:
    if value is MISSING or value is None or value == "":
        return None
    try:
        number = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not -MAX_VALUE <= number <= MAX_VALUE:
        raise _Bad(reason, field, "a number", value)
    return number


def _strings(value: Any, separator: str | None) -> list[str]:
    """Text, or a list of texts (or of objects with a name), as a list."""
    if type(value) is str:
        return value.split(separator) if separator else [value]
    return [s for v in value for s in _strings(v, separator)] if type(value) is list else []
