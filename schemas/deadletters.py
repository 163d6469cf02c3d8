"""A dead letter: a record that could not be used, whole, with where it came from and why.

Value of `currents.dead-letters` (key = the original key): a MessagePack map, field "v" first.

    {"v": 1, "reason": str, "detail": str, "platform": str, "topic": str, "partition": int, "offset": int,
     "timestamp": ms, "at": ms, "key": bytes | nil, "value": bytes | nil,
     "headers": [[str, bytes | nil], …]}                                  headers only where the record has some
"""

from typing import Protocol

import msgpack
import msgspec

from schemas.items import unpack_map
from schemas.metadata import Metadata

VERSION = 1


class DeadLetter(msgspec.Struct, frozen=True):
    """A rejected record."""

    reason: str
    """Slug, fit for a metric's label."""
    detail: str
    platform: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    """Time of the original record, ms."""
    at: int
    """When it was rejected, ms."""
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    """Of the original record."""

    @property
    def metadata(self) -> Metadata:
        """The original record without its value."""
        return Metadata(self.timestamp, self.key, self.headers)


class Record(Protocol):
    """What a Kafka client calls a record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def letter_of(record: Record, reason: str, detail: str, platform: str, at_ms: int) -> DeadLetter:
    """A rejected record as a dead letter."""
    r, headers = record, tuple(getattr(record, "headers", None) or ())
    return DeadLetter(reason, detail, platform, r.topic, r.partition, r.offset, r.timestamp, at_ms, r.key, r.value, headers)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """DeadLetter -> bytes of `currents.dead-letters`."""
    row = {"v": VERSION, **msgspec.structs.asdict(letter)}
    if not letter.headers:
        del row["headers"]
    return bytes(msgpack.packb(row))


def decode_dead_letter(data: bytes) -> DeadLetter:
    """Bytes of `currents.dead-letters` -> DeadLetter. Raises ValueError on other bytes or another version."""
    try:
        return msgspec.convert(unpack_map(data, VERSION, "dead letter"), DeadLetter)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"not a dead letter: {error}") from None
