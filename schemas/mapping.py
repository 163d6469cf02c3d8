"""A platform's bytes -> unified events and items, or Rejected with the reason. Compiled at construction; nothing raises on any bytes."""

from collections import Counter
from collections.abc import Callable
from reprlib import Repr
from typing import Any, TypeVar

import msgspec

from schemas.declaration import IGNORE, ItemMapping, PlatformMapping
from schemas.events import BEHAVIOR_CODE, BEHAVIORS, MAX_TS_MS, MAX_VALUE, VERSION, Event, canonical_user, hash64
from schemas.fields import condition, elements, first, none_of, rewrites, texts
from schemas.formats import EXACT, FormatError, Loads, Schemas, decode, loads, loads_exact
from schemas.items import MAX_TITLE, Item, clip_categories, item_name
from schemas.metadata import NOTHING, ROOTS, Metadata, cloud_event, enrich, key_of, structured
from schemas.numbers import FORMATS, duration_s, plain
from schemas.paths import MISSING, getter, parse, spelled
from schemas.times import hint, reader

__all__ = ["REASONS", "Deleted", "Mapper", "Metadata", "PlatformMapping", "Rejected"]

REASONS = (
    "empty-value", "too-large", "not-json", "wrong-shape", "no-account", "no-item", "no-time", "bad-time", "time-in-future", "time-too-old",
    "no-behavior", "unknown-behavior", "bad-id", "bad-value", "bad-dwell", "no-title", "too-deep", "unknown-format", "no-schema", "failed",
)  # fmt: skip
MAX_ID = 1024  # characters of an id
MAX_TEXT = 4000  # characters of an item's text that the tower sees
MAX_FROM_ONE = 10_000  # events, or items, of one record
_Made = TypeVar("_Made")
_repr = Repr()
_repr.maxlevel, _repr.maxdict, _repr.maxlist, _repr.maxstring, _repr.maxother = 3, 4, 4, 80, 80


class Rejected(msgspec.Struct, frozen=True):
    """Why a record cannot be used."""

    reason: str
    """One of REASONS."""
    detail: str
    """Where, what was wanted, what was there."""


class Deleted(msgspec.Struct, frozen=True):
    """An item that a platform took away."""

    item: str
    """`platform:item_id`."""


class _Bad(Exception):
    def __init__(self, reason: str, field: str, wanted: str, got: Any) -> None:
        super().__init__(reason)
        self.rejected = Rejected(reason, f"{field}: want {wanted}, got {_shown(got)}".encode("utf-8", "replace").decode())


class _Inexact(_Bad):
    """An id of which the fast reader kept too few digits."""


class Mapper:
    """Reads the records of one platform. Safe for one thread of events and one of items at a time."""

    def __init__(
        self, mapping: PlatformMapping, max_skew_ms: int, earliest_ms: int, max_bytes: int = 2_000_000, schemas: Schemas | None = None
    ) -> None:
        m = self.mapping = mapping
        self._skew_ms, self._earliest_ms, self._max_bytes, self._schemas = max_skew_ms, earliest_ms, max_bytes, schemas
        arrays = m.arrays
        levels = len(arrays)
        none = none_of(m.none_of("filters"))
        self._elements = elements(arrays) if arrays else None
        self._filters = [condition(f, levels, none) for f in m.filters if not f.inside]
        self._element_filters = [condition(f, levels, none) for f in m.filters if f.inside]
        of = {name: first(paths, levels, none_of(m.none_of(name))) for name, paths in m.paths().items()}
        self._account, self._item, self._behavior, self._time, self._dwell = of["account"], of["item"], of["behavior"], of["time"], of["dwell"]
        self._id, self._value = of["event_id"], of["value"]
        own = [p for p in m.value if len(parse(p).arrays) == levels]
        self._line_value = first(own, levels, none_of(m.none_of("value"))) if arrays else self._value
        self._parts = [first((p,), levels, none_of(m.none_of("behavior_parts"))) for p in m.behavior_parts]
        self._words, self._folded = _words(m.behaviors)
        self._ignores = IGNORE in m.behaviors.values()
        self._default = BEHAVIOR_CODE[m.default_behavior] if m.default_behavior else None
        self._read_time, self._read_number = reader(m.time_format), FORMATS[m.value_format]
        self._dwell_s = 1.0 if m.dwell_unit == "s" else 0.001
        low, high = m.value_scale or (0.0, 0.0)
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._lenient = frozenset(m.lenient)
        self._batch = [getter(parse(p).steps) for p in m.batch]
        self._rewrites = rewrites(m.base64, m.from_json)
        self._cloud = m.envelope == "cloudevents"
        self._plain = not (self._batch or self._rewrites or self._cloud)
        every = [p for texts_ in m.paths().values() for p in texts_] + [p for f in m.filters for p in f.path]
        self._event_roots, self._items = _Roots(every), _Items(m.items, m.name) if m.items else None
        item_roots = _Roots(self._items.paths if self._items else [])
        self._item_roots = item_roots
        self.reads_metadata = self._cloud or bool(self._event_roots.names or item_roots.names)
        """Whether the mapping reads of a record more than its value."""
        self.left_out: Counter[str] = Counter()
        """Optional fields that could not be read and were left out, by the reason that the record would have been rejected for."""

    def events(self, raw: bytes | None, topic: str, partition: int, offset: int, now_ms: int, metadata: Metadata = NOTHING) -> list[Event] | Rejected:
        """The events of one record, none if a filter leaves it out. One bad element rejects the whole record."""
        return _tried(self._events, raw, topic, partition, offset, now_ms, metadata)

    def items(self, raw: bytes | None, metadata: Metadata = NOTHING) -> list[Item | Deleted] | Rejected:
        """The items of one record, none if a filter leaves it out. A record with a key and without value takes an item away."""
        return _tried(self._items_of, raw, metadata)

    def item(self, raw: bytes | None, metadata: Metadata = NOTHING) -> Item | Rejected:
        """The first item of one record."""
        found = self.items(raw, metadata)
        if isinstance(found, Rejected):
            return found
        return next((i for i in found if isinstance(i, Item)), Rejected("wrong-shape", "items: want an item, got a record that holds none"))

    def _events(self, read: Loads, raw: bytes | None, topic: str, partition: int, offset: int, now_ms: int, metadata: Metadata) -> list[Event]:
        made: list[Event] = []
        for doc in self._docs(read, raw, metadata, self._event_roots):
            for passes in self._filters:
                if not passes(doc, MISSING):
                    break
            else:
                found = self._elements(doc) if self._elements is not None else None
                for index, element in found or _ONE:
                    if element is not MISSING and not all(passes(doc, element) for passes in self._element_filters):
                        continue
                    event = self._event(doc, element, index, topic, partition, offset, now_ms)
                    if event is not None:
                        made.append(event)
                if len(made) > MAX_FROM_ONE:
                    raise _Bad("too-large", "record", f"at most {MAX_FROM_ONE} events", len(made))
        return made

    def _items_of(self, read: Loads, raw: bytes | None, metadata: Metadata) -> list[Item | Deleted]:
        if self._items is None:
            raise _Bad("wrong-shape", "items", f"a mapping of items for platform {self.mapping.name}", None)
        if raw is None and metadata.key and not (self._cloud and metadata.headers):
            return [self._items.tombstone(metadata, lambda key: self._key(key, read))]
        made: list[Item | Deleted] = []
        for doc in self._docs(read, raw, metadata, self._item_roots):
            made += self._items.of(doc)
            if len(made) > MAX_FROM_ONE:
                raise _Bad("too-large", "record", f"at most {MAX_FROM_ONE} items", len(made))
        return made

    def _docs(self, read: Loads, raw: bytes | None, metadata: Metadata, roots: "_Roots") -> list[dict[str, Any]]:
        """The documents of a record: one, or those of its batch."""
        if self._plain and not roots.names:
            doc = self._decoded(raw, read)
            if type(doc) is dict:
                return [doc]
            return self._several(doc, metadata, roots, read)
        doc = cloud_event(raw, metadata.headers, lambda data: self._decoded(data, read)) if self._cloud and metadata.headers else None
        if doc is None:
            doc = self._decoded(raw, read)
        return self._several(doc, metadata, roots, read)

    def _several(self, doc: Any, metadata: Metadata, roots: "_Roots", read: Loads) -> list[dict[str, Any]]:
        docs: list[Any] = doc if type(doc) is list else [doc]
        for get in self._batch:
            docs = [inner for d in docs for found in (get(d),) for inner in (found if type(found) is list else (d,))]
        for d in docs:
            if type(d) is not dict:
                raise _Bad("wrong-shape", "record", "a JSON object, or an array of them", type(d).__name__)
            if self._cloud:
                structured(d, read)
            for rewrite in self._rewrites:
                rewrite(d, read)
            if roots.names:
                enrich(d, metadata, roots.names, roots.key_inside, lambda key: self._key(key, read))
        return docs

    def _decoded(self, raw: bytes | None, read: Loads) -> Any:
        if not raw:
            raise _Bad("empty-value", "record", "JSON", None)
        if len(raw) > self._max_bytes:
            raise _Bad("too-large", "record", f"at most {self._max_bytes} bytes", f"{len(raw)} bytes")
        try:
            return decode(raw, self._schemas, read)
        except FormatError as error:
            raise _Bad(error.reason, "record", error.wanted, raw[:60]) from None

    def _key(self, key: bytes, read: Loads) -> Any:
        """What a key says as JSON, or nothing."""
        try:
            return decode(key, self._schemas, read) if len(key) <= self._max_bytes else None
        except FormatError:
            return None

    def _event(self, doc: Any, element: Any, index: str, topic: str, partition: int, offset: int, now_ms: int) -> Event | None:
        m = self.mapping
        try:
            account = _text("no-account", "account", self._account(doc, element))
            item = _text("no-item", "item", self._item(doc, element))
            behavior = self._code(doc, element)
        except _Inexact:
            raise
        except _Bad:
            if self._ignored(doc, element):  # what is left out on purpose need not have an item
                return None
            raise
        if behavior < 0:
            return None
        ts_ms = self._when(self._time(doc, element), now_ms)
        number = (self._value if element is MISSING else self._line_value)(doc, element)
        value = None if number is MISSING or number is None or number == "" else self._optional("value", self._number, number)
        dwell = self._dwell(doc, element)
        dwell_s = None if dwell is MISSING or dwell is None or dwell == "" else self._optional("dwell", self._seconds, dwell)
        own = self._id(doc, element)
        user = _utf8("no-account", "account", canonical_user(m.name, account, m.shared_ids))
        event_id = None if own is MISSING or own is None or own == "" else self._optional("event_id", _own_id, own)
        if event_id is None:
            hashed = hash64(m.name, user, str(ts_ms), BEHAVIORS[behavior], item, repr(value), repr(dwell_s))
        else:
            hashed = hash64(m.name, event_id, index)
        return Event(VERSION, user, ts_ms, hashed, m.code, behavior, item, account, value, dwell_s, topic, partition, offset)

    def _code(self, doc: Any, element: Any) -> int:
        """The behavior's code; -1 where the word means that the record is left out."""
        word = MISSING
        if self._parts:
            parts = [part(doc, element) for part in self._parts]
            if any(p is not MISSING and p is not None for p in parts):
                word = "/".join("" if p is MISSING or p is None or type(p) in (dict, list) else spelled(p) for p in parts)
                code = self._known(word)
                if code is not None:
                    return code
        told = self._behavior(doc, element)
        if told is not MISSING and told is not None and told != "":
            word = told
        if word is MISSING:
            if self._default is None:
                raise _Bad("no-behavior", "behavior", "a word", word)
            return self._default
        for one in word if type(word) is list else (word,):
            code = self._known(one)
            if code is not None:
                return code
        raise _Bad("unknown-behavior", "behavior", "a word of the table `behaviors`", word)

    def _ignored(self, doc: Any, element: Any) -> bool:
        try:
            return self._ignores and self._code(doc, element) < 0
        except _Bad:
            return False

    def _known(self, word: Any) -> int | None:
        if type(word) is not str:
            if type(word) in (dict, list) or word is None:
                return None
            word = spelled(word)
        code = self._words.get(word)
        return code if code is not None or len(word) > MAX_ID else self._folded.get(word.casefold())

    def _when(self, time: Any, now_ms: int) -> int:
        if time is MISSING or time is None or time == "":
            raise _Bad("no-time", "time", "a time", time)
        try:
            ts_ms = self._read_time(time)
        except (ValueError, TypeError, OverflowError):
            wanted = self.mapping.time_format + hint(time, self._earliest_ms, now_ms + self._skew_ms)
            raise _Bad("bad-time", "time", wanted, time) from None
        if ts_ms > now_ms + self._skew_ms or ts_ms > MAX_TS_MS:
            wanted = f"at most {self._skew_ms} ms ahead{hint(time, self._earliest_ms, now_ms + self._skew_ms)}"
            raise _Bad("time-in-future", "time", wanted, time)
        if ts_ms < self._earliest_ms or ts_ms < 0:
            wanted = f"a time after ingest.earliest{hint(time, self._earliest_ms, now_ms + self._skew_ms)}"
            raise _Bad("time-too-old", "time", wanted, time)
        return ts_ms

    def _optional(self, field: str, read: Callable[[Any], _Made], value: Any) -> _Made | None:
        """What a field says; nothing where it cannot be read and may be left out."""
        try:
            return read(value)
        except _Inexact:
            raise
        except _Bad as bad:
            if field not in self._lenient:
                raise
            self.left_out[bad.rejected.reason] += 1
            return None

    def _number(self, value: Any) -> float:
        try:
            number = self._read_number(value)
        except (ValueError, OverflowError):
            raise _Bad("bad-value", "value", "a number", value) from None
        if not -MAX_VALUE <= number <= MAX_VALUE:
            raise _Bad("bad-value", "value", "a number", value)
        return max(-1.0, min(1.0, (number - self._middle) / self._half)) if self._half else number

    def _seconds(self, dwell: Any) -> float:
        try:
            try:
                seconds = plain(dwell) * self._dwell_s
            except ValueError:
                seconds = duration_s(dwell)
        except (ValueError, OverflowError):
            raise _Bad("bad-dwell", "dwell", "a duration", dwell) from None
        if not 0 <= seconds <= MAX_VALUE:
            raise _Bad("bad-dwell", "dwell", "a duration", dwell)
        return seconds


class _Roots:
    """What some paths read of a record's metadata."""

    def __init__(self, paths: list[str]) -> None:
        used = [p for p in paths if p.startswith("@")]
        self.names = frozenset(root for p in used if (root := str((parse(p).arrays or (parse(p).steps,))[0][0])) in ROOTS)
        self.key_inside = any(len(parse(p).steps) > 1 or parse(p).arrays for p in used if p.startswith(("@key.", "@key[")))


class _Items:
    """Reads the items of documents."""

    def __init__(self, mapping: ItemMapping, platform: str) -> None:
        i, levels = mapping, len(mapping.arrays)
        none = none_of(i.none_values)
        self._platform = platform
        self._id, self._title = first(i.id, levels, none), first(i.title, levels, none)
        self._texts = [texts(p, i.arrays, None) for p in i.text]
        self._categories = [texts(p, i.arrays, i.separator) for p in i.categories]
        self._elements = elements(i.arrays) if i.arrays else None
        self._filters = [condition(f, levels, none) for f in i.filters]
        self._deleted = condition(i.deleted, levels, none) if i.deleted else None
        self._tombstone, self._tombstone_roots = first(i.tombstone, 0), _Roots(list(i.tombstone))
        conditions = [*i.filters, *([i.deleted] if i.deleted else [])]
        self.paths = [*i.id, *i.title, *i.text, *i.categories, *(p for f in conditions for p in f.path)]

    def of(self, doc: dict[str, Any]) -> list[Item | Deleted]:
        """The items of a document."""
        found = self._elements(doc) if self._elements is not None else None
        return [self._one(doc, e) for _, e in found or _ONE if all(passes(doc, e) for passes in self._filters)]

    def tombstone(self, metadata: Metadata, read_key: Loads) -> Deleted:
        """The item that a record without value takes away."""
        if key_of(metadata.key, False, read_key) is None:
            raise _Bad("empty-value", "key", "the key of a tombstone in UTF-8", metadata.key)
        doc: dict[str, Any] = {}
        enrich(doc, metadata, self._tombstone_roots.names, self._tombstone_roots.key_inside, read_key)
        found = self._tombstone(doc, MISSING)
        inside = read_key(metadata.key) if type(found) is str and found[:1] in ("{", "[", "\0") else found
        if type(inside) in (dict, list):
            raise _Bad("no-item", "key", "the id of an item; where it is in JSON: items.tombstone, as in @key.payload.id", found)
        return Deleted(item_name(self._platform, _text("no-item", "items.tombstone", found if inside is None else inside)))

    def _one(self, doc: Any, element: Any) -> Item | Deleted:
        name = item_name(self._platform, _text("no-item", "items.id", self._id(doc, element)))
        if self._deleted is not None and self._deleted(doc, element):
            return Deleted(name)
        title = self._title(doc, element)
        if type(title) is not str or not title.strip():
            raise _Bad("no-title", "items.title", "text", title)
        text = " ".join(t for read in self._texts for t in read(doc, element))
        named = [c[:MAX_TITLE] for read in self._categories for c in read(doc, element)]
        item = Item(name, title.strip()[:MAX_TITLE], clip_categories(named), text[:MAX_TEXT])
        for part in (item.title, item.text, *item.categories):
            _utf8("wrong-shape", "items", part)
        return item


_ONE = [("", MISSING)]
"""Of a document without elements: itself."""


def _tried(make: Callable[..., list[_Made]], *record: Any) -> list[_Made] | Rejected:
    """Whatever is raised becomes a rejection, but for a MemoryError, which is the process's. Ids with many digits are read again, exactly."""
    try:
        try:
            return make(loads, *record)
        except _Inexact:
            return make(loads_exact, *record)
    except _Bad as bad:
        return bad.rejected
    except FormatError as error:
        return Rejected(error.reason, f"record: want {error.wanted}"[:400])
    except MemoryError:
        raise
    except Exception as error:  # a mapping must not end the process
        return Rejected("failed", f"record: want a value that can be mapped, got {type(error).__name__}")


def _words(behaviors: dict[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """A platform's words -> codes, as they are written, and in any case; words that differ only in case count as written."""
    own = {word: -1 if name == IGNORE else BEHAVIOR_CODE[name] for word, name in behaviors.items()}
    words = {**BEHAVIOR_CODE, **own}
    folded: dict[str, int] = {}
    twice: set[str] = set()
    for word, code in words.items():
        if folded.setdefault(word.casefold(), code) != code:
            if word in own and not any(w.casefold() == word.casefold() for w in own if w != word):
                folded[word.casefold()] = code  # a platform's word counts before a behavior's own name
            else:
                twice.add(word.casefold())
    return words, {word: code for word, code in folded.items() if word not in twice}


def _text(reason: str, field: str, value: Any) -> str:
    """An id: text as it is, whole numbers as text."""
    if type(value) is int:
        value = str(value) if -_MANY < value < _MANY else MISSING
    elif type(value) is float and value.is_integer():
        if abs(value) >= EXACT:
            raise _Inexact(reason, field, "a whole number whose digits are all known", value)
        value = str(int(value))
    if type(value) is not str or not value or len(value) > MAX_ID:
        raise _Bad(reason, field, f"an id of 1 to {MAX_ID} characters", value)
    return _utf8(reason, field, value)


_MANY = 10**MAX_ID


def _own_id(value: Any) -> str:
    return _text("bad-id", "event_id", value)


def _utf8(reason: str, field: str, value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Bad(reason, field, "Unicode text", value) from None
    if len(value) > MAX_ID and reason == "no-account":
        raise _Bad(reason, field, f"an id of 1 to {MAX_ID} characters", value)
    return value


def _shown(value: Any) -> str:
    """A value in some 100 characters, however large it is."""
    if value is MISSING or value is None:
        return "nothing"
    try:
        return (repr(value[:100]) if type(value) in (str, bytes) else _repr.repr(value))[:100]
    except (ValueError, RecursionError):  # a whole number of too many digits
        return f"a {type(value).__name__} that is too large to show"
