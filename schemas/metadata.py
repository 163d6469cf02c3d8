"""What a Kafka record says beside its value, and how a mapping reads it: `@timestamp`, `@key`, `@headers.name`, and CloudEvents in headers."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from schemas.times import RecordTime

Header = tuple[str, bytes | None]
ROOTS = ("@timestamp", "@key", "@headers")
"""First keys of paths into the metadata."""


class Metadata(NamedTuple):
    """A record without its value."""

    timestamp: int | None = None
    """ms since the epoch."""
    key: bytes | None = None
    headers: Sequence[Header] = ()


NOTHING = Metadata()


def text_of(data: bytes | None) -> str | None:
    """UTF-8 bytes as text; nothing of others."""
    try:
        return None if data is None else bytes(data).decode()
    except UnicodeDecodeError:
        return None


def headers_of(headers: Sequence[Header]) -> dict[str, str]:
    """Headers as text, by their names; the last of a name counts, and one that is not UTF-8 is left out."""
    return {name: text for name, data in headers if (text := text_of(data)) is not None}


def enrich(doc: dict[str, Any], metadata: Metadata, roots: frozenset[str], key_json: bool, loads: Callable[[Any], Any]) -> None:
    """Put what a mapping reads of the metadata beside the payload's own keys. A payload's own `@timestamp` comes first, as it always did."""
    if "@timestamp" in roots and metadata.timestamp is not None and metadata.timestamp >= 0:
        doc.setdefault("@timestamp", RecordTime(metadata.timestamp))
    if "@headers" in roots:
        doc["@headers"] = headers_of(metadata.headers)
    if "@key" in roots:
        doc["@key"] = key_of(metadata.key, key_json, loads)


def key_of(key: bytes | None, key_json: bool, loads: Callable[[Any], Any]) -> Any:
    """A key as text, or what its JSON says where a path goes into it."""
    return loads(key) if key_json and key else text_of(key)


def cloud_event(raw: bytes | None, headers: Sequence[Header], loads: Callable[[Any], Any]) -> dict[str, Any] | None:
    """A CloudEvent in binary mode, attributes in headers and the data as value -> the same in structured mode; None if it is none."""
    attributes = {n[3:].lower(): v for n, v in headers_of(headers).items() if n[:3].lower() in ("ce_", "ce-")}
    if "specversion" not in attributes:
        return None
    kind = next((v for n, v in headers_of(headers).items() if n.lower() == "content-type"), None)
    doc: dict[str, Any] = dict(attributes)
    if kind is not None:
        doc["datacontenttype"] = kind
    if raw:
        textual = kind is not None and "json" not in kind.lower() and kind.lower().startswith("text/")
        doc["data"] = text_of(raw) if textual else loads(raw)
    return doc


def from_base64(text: str) -> bytes | None:
    """Base64 of either alphabet, with or without its padding -> bytes; None of what is none."""
    try:
        return base64.b64decode(text.strip().translate(_URL_SAFE) + "=" * (-len(text.strip()) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


_URL_SAFE = str.maketrans("-_", "+/")


def structured(doc: dict[str, Any], loads: Callable[[Any], Any]) -> None:
    """Of a CloudEvent in structured mode: its data also where it is base64."""
    text = doc.get("data_base64")
    if type(text) is str and "data" not in doc and (data := from_base64(text)):
        doc["data"] = loads(data) if "json" in str(doc.get("datacontenttype", "json")) else text_of(data)
