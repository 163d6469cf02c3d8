"""A record's bytes -> JSON values, bounded in depth; what is no JSON says which format it looks like. Knows no network: schemas are handed in."""

import json
import math
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from schemas.avro import AvroReader

MAX_DEPTH = 100  # arrays and objects in one another
MAX_DIGITS = 1024  # of a whole number: as many as an id has characters
EXACT = 2.0**53  # from here on a float may stand for several whole numbers
Loads = Callable[[Any], Any]
"""JSON as bytes or text -> a value. Raises FormatError."""
_HEADER = 5  # bytes of the framing: 0, then the id of a schema, big-endian


class FormatError(ValueError):
    """Bytes that cannot be read: `reason` is one of schemas.mapping.REASONS."""

    def __init__(self, reason: str, wanted: str) -> None:
        super().__init__(wanted)
        self.reason, self.wanted = reason, wanted


class Schema(Protocol):
    """A schema of a registry."""

    def decode(self, data: bytes) -> Any:
        """The payload behind the framing -> a JSON value. Raises FormatError."""


class Schemas(Protocol):
    """Where a mapper gets schemas from: what is at hand, without waiting."""

    def schema(self, schema_id: int) -> Schema:
        """The schema of an id. Raises FormatError."""


class JsonSchema:
    """A JSON Schema: the payload is JSON and needs no schema to be read."""

    def decode(self, data: bytes) -> Any:
        """As any JSON."""
        return loads(data)


class AvroSchema:
    """An Avro schema, compiled."""

    def __init__(self, text: str) -> None:
        """Raises FormatError on what is no schema that can be read safely."""
        try:
            self._reader = AvroReader(loads(text))
        except ValueError as error:
            raise FormatError("no-schema", f"an Avro schema that can be read safely ({error})"[:200]) from None

    def decode(self, data: bytes) -> Any:
        """Avro's binary encoding of one value."""
        try:
            return self._reader.read(data)
        except ValueError as error:
            raise FormatError("not-json", f"Avro as its schema says ({error})"[:200]) from None


def loads(raw: Any) -> Any:
    """JSON -> a value at most MAX_DEPTH deep. Whole numbers beyond 64 bits become floats: see `loads_exact`."""
    try:
        doc = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if "infinity" in str(error):
            return loads_exact(raw)
        raise _refused(raw, error) from None
    if _brackets(raw) > MAX_DEPTH and depth(doc) > MAX_DEPTH:
        raise FormatError("too-deep", f"at most {MAX_DEPTH} levels")
    return doc


def loads_exact(raw: Any) -> Any:
    """As `loads`, with whole numbers of any size exact; several times slower."""
    if _brackets(raw) > MAX_DEPTH:
        try:
            if depth(orjson.loads(raw)) > MAX_DEPTH:
                raise FormatError("too-deep", f"at most {MAX_DEPTH} levels")
        except orjson.JSONDecodeError as error:
            raise _refused(raw, error) from None  # a number beyond orjson too: the standard library recurses, so it reads only few brackets
    try:
        return json.loads(raw, parse_int=_whole, parse_float=_real)
    except ValueError as error:
        raise _refused(raw, error) from None


def depth(value: Any) -> int:
    """How many arrays and objects are in one another; without recursion."""
    level, n = [value], -1
    while level:
        level = [c for v in level if type(v) in (dict, list) for c in (v.values() if type(v) is dict else v)]
        n += 1
    return n


def framed(raw: bytes) -> int | None:
    """The schema's id of a value in the framing of Confluent's Schema Registry; None of another value."""
    return int.from_bytes(raw[1:_HEADER], "big") if len(raw) > _HEADER and raw[0] == 0 else None


def decode(raw: bytes, schemas: Schemas | None, read: Loads = loads) -> Any:
    """A record's bytes -> a JSON value. JSON inside JSON text is read, once. Raises FormatError."""
    schema_id = framed(raw)
    if schema_id is not None:
        return _framed(raw[_HEADER:], schema_id, schemas, read)
    doc = read(raw[3:] if raw.startswith(b"\xef\xbb\xbf") else raw)
    if type(doc) is str and doc.lstrip()[:1] in ("{", "["):
        return read(doc)
    return doc


def _framed(payload: bytes, schema_id: int, schemas: Schemas | None, read: Loads) -> Any:
    if schemas is not None:
        schema = schemas.schema(schema_id)
        return read(payload) if isinstance(schema, JsonSchema) else schema.decode(payload)
    try:
        if payload.lstrip()[:1] in (b"{", b"["):
            return read(payload)
    except FormatError as error:
        if error.reason == "too-deep":
            raise
    raise FormatError("no-schema", f"ingest.schema_registry for the Schema Registry framing (schema {schema_id})")


def _brackets(raw: Any) -> int:
    return int(raw.count("[") + raw.count("{") if type(raw) is str else raw.count(b"[") + raw.count(b"{"))


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


def _real(digits: str) -> int | float:
    """A float from which on floats stand for several whole numbers becomes one: digit by digit where it is written so."""
    number = float(digits)
    if abs(number) < EXACT or not math.isfinite(number):
        return number
    whole, _, fraction = digits.partition(".")
    return int(whole) if fraction and not fraction.strip("0") and len(whole) <= MAX_DIGITS else int(number)


def _refused(raw: Any, error: ValueError) -> FormatError:
    if "depth limit" in str(error):
        return FormatError("too-deep", f"at most {MAX_DEPTH} levels")
    known = name_of(raw.encode("utf-8", "replace") if type(raw) is str else bytes(raw[:4096]))
    if known:
        return FormatError("unknown-format", f"JSON, this looks like {known}")
    return FormatError("not-json", f"JSON ({error})"[:200])


_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy"),
    (b"\x82SNAPPY\x00", "Snappy"),
    (b"PK\x03\x04", "ZIP"),
    (b"Obj\x01", "an Avro object container"),
    (b"\xc3\x01", "an Avro single object"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"ORC", "ORC"),
    (b"\xd9\xd9\xf7", "CBOR"),
    (b":)\n", "Smile"),
    (b"\xac\xed\x00\x05", "Java serialisation"),
    (b"\x0b\x00d\x00\x00", "a Thrift struct, such as Snowplow's collector payload"),
)


def name_of(raw: bytes) -> str | None:  # noqa: PLR0911 # a format each
    """What a value that is no JSON looks like, from its first bytes."""
    for magic, name in _MAGIC:
        if raw.startswith(magic):
            return name
    if len(raw) >= 18 and raw[0] == 3 and raw[1] in (0, 5):
        return "the framing of AWS Glue's schema registry"
    if len(raw) > 4 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    if len(raw) > 4 and raw[0] == 0 and raw[1:2] in (b"{", b"["):
        return "UTF-16"
    if len(raw) > 1 and (0x81 <= raw[0] <= 0x8F or raw[0] in (0xDE, 0xDF)) and (0xA0 <= raw[1] <= 0xBF or raw[1] in (0xD9, 0x00)):
        return "MessagePack"
    if len(raw) > 1 and 0xA1 <= raw[0] <= 0xB7 and 0x60 <= raw[1] <= 0x78:
        return "CBOR"
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        text = raw[: error.start].decode() if error.start > len(raw) - 4 else ""
    return _name_of_text(text.strip()) if text.strip() else _protobuf(raw)


def _name_of_text(text: str) -> str | None:  # noqa: PLR0911 # a format each
    head = text[:1]
    if head == "<":
        return "XML or HTML"
    if head in "{[" and "\n" in text and text.split("\n", 1)[0].rstrip()[-1:] in "}]":
        return "JSON lines: several JSON values in one record"
    if head == "{" and len(text) > 1 and text[1] not in ('"', "}", " ", "\n", "\t", "\r"):
        return "a printed object (Python, JavaScript or Java) with its keys unquoted"
    if head in '{["':
        return None  # JSON that is broken
    if text.count("\t") >= 100:
        return "Snowplow's enriched TSV (its Analytics SDKs and loaders write JSON)"
    if text.count("\t") >= 3:
        return "TSV"
    if text.startswith(("eyJ", "W3si")) and " " not in text:
        return "a JSON Web Token" if text.count(".") == 2 else "JSON in base64"
    if "=" in text and "&" in text and " " not in text:
        return "a URL-encoded form"
    if text.startswith("---") or (":" in text.split("\n", 1)[0] and "\n" in text):
        return "YAML"
    return "CSV" if text.count(",") >= 3 else None


def _protobuf(raw: bytes) -> str | None:
    """A first field of bytes whose length fits, or a small number: what most messages of Protobuf begin with."""
    return "Protobuf" if len(raw) > 2 and raw[0] == 0x0A and 0 < raw[1] <= len(raw) - 2 else None
