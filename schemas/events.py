"""The unified event: one action of one account on one item at one time, whatever platform it came from.

Value of `currents.events` (key = user_id): a MessagePack array, the version first. New fields go to the end; readers ignore what they do not know.

    [1, user_id, ts_ms, event_id, platform, behavior, item_id, account, value, dwell_s, topic, partition, offset]
"""

from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta

VERSION = 1
UNIFIED_EVENTS = "unified.events.msgpack"
"""File of a log that was written down for training: values of the unified topic, one after the other."""

# The position of a behavior is its code in windows: append only.
BEHAVIORS = (
    "unknown",
    "view",
    "click",
    "read",
    "like",
    "follow",
    "share",
    "comment",
    "save",
    "search",
    "cart",
    "buy",
    "rate",
    "hide",
)
BEHAVIOR_CODE = {name: code for code, name in enumerate(BEHAVIORS)}
MAX_TS_MS = 253_402_300_799_999  # 9999-12-31, the last instant that ISO 8601 and datetime can write
MAX_VALUE = 3.4e38  # what fits the float32 of a window row

Id = Annotated[str, Meta(min_length=1, max_length=1024)]
TsMs = Annotated[int, Meta(ge=0, le=MAX_TS_MS)]
Code = Annotated[int, Meta(ge=0, le=63)]


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One unified event. Times in ms since the epoch, `event_id` an unsigned 64-bit hash."""

    version: int
    user_id: Id
    ts_ms: TsMs
    event_id: Annotated[int, Meta(ge=0)]
    platform: Code
    """Code of the platform, 1..63, from the settings."""
    behavior: Annotated[int, Meta(ge=0, lt=len(BEHAVIORS))]
    """Index into BEHAVIORS."""
    item_id: Id
    account: Id
    value: Annotated[float, Meta(ge=-MAX_VALUE, le=MAX_VALUE)] | None = None
    """The platform's own number: a rating, a price, a quantity."""
    dwell_s: Annotated[float, Meta(ge=0, le=MAX_VALUE)] | None = None
    topic: str = ""
    partition: int = -1
    offset: int = -1


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Event).decode


def encode_event(event: Event) -> bytes:
    """Event -> bytes of `currents.events`."""
    return _encode(event)


def decode_event(data: bytes) -> Event:
    """Bytes of `currents.events` -> Event. Raises ValueError on other bytes or a newer version."""
    try:
        event = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not a unified event: {error}") from None
    if event.version != VERSION:
        raise ValueError(f"unified event of version {event.version}, this release reads {VERSION}")
    return event


def hash64(*parts: str) -> int:
    """Unsigned 64-bit XXH3 of the parts, each ended by NUL so that ("ab", "c") and ("a", "bc") differ."""
    return xxhash.xxh3_64_intdigest("\0".join(parts).encode("utf-8", "surrogatepass") + b"\0")


def canonical_user(platform: str, account: str, shared_ids: bool) -> str:
    """The user of an account: the account itself where platforms share ids, else `platform:account`.

    The one place where accounts become users; links between accounts will be looked up here.
    """
    return account if shared_ids else f"{platform}:{account}"
