"""Values in the framing of a Schema Registry, from a registry over HTTP to events."""

import asyncio
import io
import json
from typing import Any

import fastavro
import orjson
import pytest

from schemas.formats import FormatError
from schemas.mapping import Mapper, Metadata, PlatformMapping, Rejected
from streams.ingest.schema_registry import AT_MOST, KEPT, SchemaRegistry, ids_of
from streams.transport.light_records import Record
from testkit.schema_registry import registry

NOW = 1_709_287_260_000
GOOD: dict[str, Any] = {"account": "u1", "item": "i1", "behavior": "view", "time": 1_709_287_200_000}
AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Click",
    "namespace": "shop",
    "fields": [
        {"name": "account", "type": "string"},
        {"name": "item", "type": ["null", "string"], "default": None},
        {"name": "behavior", "type": {"type": "enum", "name": "Kind", "symbols": ["view", "buy"]}},
        {"name": "time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "value", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}], "default": None},
    ],
}
NODE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}


def schema(avro: Any, **more: Any) -> dict[str, Any]:
    return {"schema": json.dumps(avro), **more}


ANSWERS: dict[int, Any] = {
    1: schema(AVRO),
    2: {"schemaType": "JSON", "schema": '{"type": "object"}'},
    3: {"schemaType": "PROTOBUF", "schema": 'syntax = "proto3";'},
    4: schema(AVRO, references=[{"name": "x", "subject": "x", "version": 1}]),
    5: schema(NODE),
    6: schema({"type": "array", "items": "null"}),
    7: b"<html>",
    8: b" " * 2_000_000,
    9: b"[" * 100_000,
    10: {"schema": "[" * 5000},
    11: schema({"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "record", "name": "E", "fields": []}}]}),
    12: {"schema": 7},
    13: schema("long"),
}


def framed(schema_id: int, payload: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + payload


def avro(value: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(json.dumps(AVRO))), value)
    return out.getvalue()


def mapper(schemas: SchemaRegistry | None) -> Mapper:
    return Mapper(PlatformMapping.model_validate({"name": "p", "code": 1, "preset": "plain"}), 300_000, 0, schemas=schemas)


def mapped(value: bytes, answers: dict[int, Any] = ANSWERS) -> Any:
    with registry(answers) as server:
        schemas = SchemaRegistry(server.url, pauses_s=(0.01,))
        asyncio.run(schemas.fetch(ids_of([Record("t", 0, 0, 0, None, value)])))
        return mapper(schemas).events(value, "t", 0, 0, NOW)


def test_avro() -> None:
    """A value in Avro is read by the schema of the registry; times stay numbers, decimals become some."""
    from decimal import Decimal

    (event,) = mapped(framed(1, avro(GOOD | {"value": Decimal("12.50")})))
    assert (event.account, event.item_id, event.ts_ms, event.value) == ("u1", "i1", GOOD["time"], 12.5)


def test_json_schema() -> None:
    """A value with a JSON Schema is JSON; so it is read without a registry too, and Avro then names what is missing."""
    assert mapped(framed(2, orjson.dumps(GOOD)))[0].account == "u1"
    (event,) = mapper(None).events(framed(2, orjson.dumps(GOOD)), "t", 0, 0, NOW)  # type: ignore[misc]
    assert event.account == "u1"
    found = mapper(None).events(framed(1, avro(GOOD)), "t", 0, 0, NOW)
    assert isinstance(found, Rejected)
    assert (found.reason, "ingest.schema_registry" in found.detail) == ("no-schema", True)


BAD = [
    (framed(1, avro(GOOD)[:-3]), "not-json"),
    (framed(1, avro(GOOD) + b"x"), "not-json"),
    (framed(1, b"\xff" * 40), "not-json"),
    (framed(3, b"x"), "unknown-format"),
    *((framed(n, b"\x02" * 9), "no-schema") for n in (4, 5, 6, 7, 8, 9, 10, 11, 12, 99)),
    (framed(13, b"\x02"), "wrong-shape"),
]


@pytest.mark.parametrize(("value", "reason"), BAD)
def test_refused(value: bytes, reason: str) -> None:
    """Bytes that are none of their schema, and schemas that cannot be had or could not be read in bounds, make dead letters."""
    found = mapped(value)
    assert isinstance(found, Rejected), found
    assert found.reason == reason, found


def test_asked_once() -> None:
    """A schema is fetched once, one that is not there too; a registry that stumbles is asked again."""
    with registry(ANSWERS) as server:
        schemas = SchemaRegistry(server.url, pauses_s=(0.01, 0.01))
        server.failures = 2
        for _ in range(3):
            asyncio.run(schemas.fetch([1]))
        asyncio.run(schemas.fetch([99]))
        asyncio.run(schemas.fetch([99]))
        assert server.asked == [1, 1, 1, 99]
        assert schemas.schema(1).decode(avro(GOOD))["item"] == "i1"


def test_bounded() -> None:
    """However many ids are written, a batch asks for some only, and as many answers are kept."""
    with registry({}) as server:
        schemas = SchemaRegistry(server.url, pauses_s=())
        asyncio.run(schemas.fetch(range(200)))
        assert len(server.asked) == AT_MOST
        for schema_id in range(KEPT + 5):
            schemas._take(schema_id, 404, b"")
        assert len(schemas._refused) == KEPT


def test_registry_away() -> None:
    """A registry that does not answer is a reason; nothing is raised, and the address is not told."""
    schemas = SchemaRegistry("http://127.0.0.1:9", pauses_s=(0.01,))
    asyncio.run(schemas.fetch([1]))
    with pytest.raises(FormatError, match="does not answer") as raised:
        schemas.schema(1)
    assert "127.0.0.1" not in raised.value.wanted


def test_keys() -> None:
    """A tombstone's key may be framed too."""
    with registry(ANSWERS) as server:
        schemas = SchemaRegistry(server.url)
        key = framed(2, b'{"id": 102}')
        asyncio.run(schemas.fetch(ids_of([Record("t", 0, 0, 0, key, None)])))
        mapping = {"items": {"id": "id", "title": "title", "tombstone": "@key.id"}}
        one = Mapper(PlatformMapping(**{"name": "p", "code": 1, "preset": "plain", **mapping}), 0, 0, schemas=schemas)
        (gone,) = one.items(None, Metadata(0, key))  # type: ignore[misc]
        assert gone.item == "p:102"
