"""The unified event: one action of one account on one item at one time, from any platform.

Value of `currents.events` (key = user_id): a MessagePack array, the version first. New fields are appended; readers ignore unknown fields.

    [1, user_id, ts_ms, event_id, platform, behavior, item_id, account, value, dwell_s, topic, partition, offset]
"""

from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta

VERSION = 1
UNIFIED_EVENTS = "unified.events.msgpack"
"""Name of the events file in a log for training: concatenated values of the unified topic."""

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
MAX_VALUE = 3.4e38  # within the range of a window row's float32

Id = Annotated[str, Meta(min_length=1, max_length=1024)]
TsMs = Annotated[int, Meta(ge=0, le=MAX_TS_MS)]
Code = Annotated[int, Meta(ge=0, le=63)]


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One unified event. Times are ms since the epoch; `event_id` is an unsigned 64-bit hash."""

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
    """A number that the platform gives: a rating, a price, a quantity."""
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
    """Bytes of `currents.events` -> Event. Raises ValueError if the bytes are no event or have another version."""
    try:
        event = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not a unified event: {error}") from None
    if event.version != VERSION:
        raise ValueError(f"unified event of version {event.version}, this release reads {VERSION}")
    return event


def hash64(*parts: str) -> int:
    """Return the unsigned 64-bit XXH3 hash of the parts. A NUL ends each part, so that ("ab", "c") and ("a", "bc") differ."""
    return xxhash.xxh3_64_intdigest("\0".join(parts).encode("utf-8", "surrogatepass") + b"\0")


def canonical_user(platform: str, account: str, shared_ids: bool) -> str:
    """Return the user of an account: the account itself if platforms share ids, else `platform:account`.

    No other code maps accounts to users. Links between accounts will be looked up here.
    """
    return account if shared_ids else f"{platform}:{account}"
