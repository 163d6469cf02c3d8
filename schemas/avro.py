"""Avro's binary encoding by a schema that is not trusted: a value takes time and depth in proportion to its bytes, or the schema is refused."""

import io
from decimal import Decimal
from typing import Any
from uuid import UUID

MAX_SCHEMA_DEPTH = 60  # types in one another, and so the depth of what is read
MAX_TYPES = 10_000
_TIMES = frozenset({"date", "time-millis", "time-micros", "timestamp-millis", "timestamp-micros", "local-timestamp-millis", "local-timestamp-micros"})


class AvroReader:
    """Reads values of one schema."""

    def __init__(self, schema: Any) -> None:
        """Raises ValueError on what is no schema, on a recursive one, and on arrays of elements without bytes: their count would be unbounded."""
        import fastavro

        counted = _Check()
        bare = counted.bare(schema, "", 0)
        try:
            self._schema = fastavro.parse_schema(bare)
        except MemoryError:
            raise
        except Exception as error:  # the library raises many kinds
            raise ValueError(f"{type(error).__name__}: {str(error)[:100]}") from None

    def read(self, data: bytes) -> Any:
        """One value. Raises ValueError on bytes that are none, also where some are left over."""
        import fastavro

        source = io.BytesIO(data)
        try:
            value = _json(fastavro.schemaless_reader(source, self._schema, None))
        except MemoryError:
            raise
        except Exception as error:  # whatever hostile bytes make the library raise
            raise ValueError(f"{type(error).__name__}: {str(error)[:100]}") from None
        if source.tell() != len(data):
            raise ValueError(f"{len(data) - source.tell()} bytes left over")
        return value


class _Check:
    """Walks a schema once: takes logical times off, so that they stay the numbers that `time_format` reads, and refuses what is unbounded."""

    def __init__(self) -> None:
        self._size: dict[str, int] = {}
        self._open: set[str] = set()
        self._types = 0

    def bare(self, schema: Any, space: str, depth: int) -> Any:
        """The schema without logical times."""
        return self._walk(schema, space, depth)[0]

    def _walk(self, schema: Any, space: str, depth: int) -> tuple[Any, int]:  # noqa: PLR0911 # a kind of type each
        """-> the schema, and the fewest bytes that a value takes."""
        self._types += 1
        if depth > MAX_SCHEMA_DEPTH or self._types > MAX_TYPES:
            raise ValueError(f"a schema of more than {MAX_SCHEMA_DEPTH} levels or {MAX_TYPES} types")
        if type(schema) is str:
            return self._named(schema, space)
        if type(schema) is list:
            branches = [self._walk(s, space, depth + 1) for s in schema]
            return [b for b, _ in branches], 1
        if type(schema) is not dict:
            raise ValueError(f"a type is text, an array or an object, not {type(schema).__name__}")
        kind = schema.get("type")
        if type(kind) is not str:
            return self._walk(kind, space, depth + 1)
        dropped = {"aliases", "logicalType"} if schema.get("logicalType") in _TIMES else {"aliases"}
        plain = {k: v for k, v in schema.items() if k not in dropped}
        if kind in ("record", "error", "enum", "fixed"):
            return self._definition(plain, kind, space, depth)
        if kind == "array":
            plain["items"], size = self._walk(schema.get("items"), space, depth + 1)
            if not size:
                raise ValueError("an array of elements that take no bytes")
            return plain, 1
        if kind == "map":
            plain["values"], _ = self._walk(schema.get("values"), space, depth + 1)
            return plain, 1
        _, size = self._named(kind, space)
        return plain, size

    def _definition(self, schema: dict[str, Any], kind: str, space: str, depth: int) -> tuple[Any, int]:
        name = schema.get("name")
        if type(name) is not str:
            raise ValueError(f"a {kind} without name")
        inner = schema.get("namespace") if type(schema.get("namespace")) is str else space
        full = name if "." in name or not inner else f"{inner}.{name}"
        inner = full.rpartition(".")[0]
        size = 1
        if kind == "fixed":
            size = schema["size"] if type(schema.get("size")) is int and schema["size"] >= 0 else 0
        elif kind != "enum":
            self._open.add(full)
            fields = schema.get("fields")
            if type(fields) is not list or not all(type(f) is dict for f in fields):
                raise ValueError(f"record {full[:60]} without fields")
            walked = [self._walk(f.get("type"), inner, depth + 1) for f in fields]
            schema["fields"] = [{**f, "type": t} for f, (t, _) in zip(fields, walked, strict=True)]
            size = sum(s for _, s in walked)
            if walked and not size:
                raise ValueError(f"record {full[:60]}: fields that take no bytes")
            self._open.discard(full)
        self._size[full] = self._size[full.rpartition(".")[2]] = size
        return schema, size

    def _named(self, name: str, space: str) -> tuple[str, int]:
        if name == "null":
            return name, 0
        if name in _PRIMITIVE:
            return name, _PRIMITIVE[name]
        full, short = name if "." in name or not space else f"{space}.{name}", name.rpartition(".")[2]
        if any(short == opened.rpartition(".")[2] for opened in self._open):
            raise ValueError(f"recursive type {name[:60]}")
        return name, self._size.get(full, self._size.get(short, 0))


_PRIMITIVE = {"boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1}


def _json(value: Any) -> Any:
    """What fastavro makes -> what JSON has."""
    if type(value) is dict:
        return {k: _json(v) for k, v in value.items()}
    if type(value) is list:
        return [_json(v) for v in value]
    if type(value) is bytes:
        return value.decode("utf-8", "replace")
    if isinstance(value, Decimal):
        return float(value)
    return str(value) if isinstance(value, UUID) else value
