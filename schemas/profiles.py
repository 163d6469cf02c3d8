"""A profile: interest vector, portrait, freshness and versions of one user.

Value of `currents.profiles` (key = user_id, null = erased): a MessagePack map, field "v" first; `docs/profiles-topic.md` describes every field.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgpack
import msgspec
import numpy as np

from schemas.items import unpack_map

VERSION = 1
VECTOR_TYPE = "float16-le"


class Evidence(msgspec.Struct, frozen=True):
    """One action that supports an interest."""

    item: str
    title: str
    behavior: str
    at: int
    """Time of the action, ms."""


class Interest(msgspec.Struct, frozen=True):
    """A named interest. Weights of a portrait sum to at most 1."""

    name: str
    weight: float
    """Share of all positive interest in the window, 0..1."""
    trend: float
    """Share in the newer half of the window minus share in the older half, -1..1."""
    platforms: dict[str, float]
    """Share of each platform in this interest; sums to 1."""
    evidence: tuple[Evidence, ...]


class Profile(msgspec.Struct, frozen=True):
    """One user's row of `currents.profiles`. Times are ms since the epoch."""

    user_id: str
    updated_at: int
    last_event_at: int
    """Time of the newest event in the window."""
    received_at: int
    """Time at which the newest event of this update reached Kafka."""
    events: int
    """Events in the window."""
    unknown_items: int
    """Number of these events whose item has no vector yet."""
    encoder_version: str
    space_id: str
    dims: int
    vector_type: str
    """Always VECTOR_TYPE in this version."""
    vector: bytes
    """(dims,) little-endian float16, L2-normalised; all zero while every item is unknown."""
    interests: tuple[Interest, ...] = ()


def pack_vector(vector: np.ndarray) -> bytes:
    """(dims,) floats -> little-endian float16 bytes."""
    return vector.astype("<f2").tobytes()


def unpack_vector(data: bytes) -> np.ndarray:
    """Little-endian float16 bytes -> (dims,) float32."""
    return np.frombuffer(data, "<f2").astype(np.float32)


_packer = msgpack.Packer(use_single_float=True)
_HEAD = [_packer.pack(f) for f in Profile.__struct_fields__]
_INTERESTS = _HEAD.pop()
_V = bytes([0x80 + 2 + len(_HEAD)]) + _packer.pack("v") + _packer.pack(VERSION)  # a map's header has the number of fields


def encode_profile(profile: Profile) -> bytes:
    """Profile -> bytes of `currents.profiles`."""
    *head, interests = msgspec.structs.astuple(profile)
    parts = [_V]
    for name, value in zip(_HEAD, head, strict=True):
        parts += (name, _packer.pack(value))
    return b"".join((*parts, _INTERESTS, _packer.pack(msgspec.to_builtins(interests))))


class Columns(NamedTuple):
    """The fields of n profiles, column by column: each has n elements."""

    users: Sequence[bytes]
    """user_ids in UTF-8."""
    last_event_at: np.ndarray
    received_at: np.ndarray
    events: np.ndarray
    unknown_items: np.ndarray
    made_by: Iterable[bytes]
    """`pack_maker` of each vector's encoder."""
    vectors: Iterable[bytes]
    """Bytes of `pack_vector`."""
    interests: Iterable[bytes]
    """Packed arrays."""


def pack_profiles(columns: Columns, updated_at: int) -> list[bytes]:
    """Encode n profiles with the same bytes as `encode_profile`. `updated_at`: of all of them, ms."""
    user_id, updated, last, received, count, unknown, *_ = _HEAD
    begin = _V + user_id
    sizes = list(map(len, columns.users))
    head = {n: begin + _packer.pack("x" * n)[: -n or None] for n in set(sizes)}  # the bytes before the user_id's text
    parts = zip(
        map(head.__getitem__, sizes), columns.users, repeat(updated + _packer.pack(updated_at) + last), _numbers(columns.last_event_at),
        repeat(received), _numbers(columns.received_at), repeat(count), _numbers(columns.events), repeat(unknown), _numbers(columns.unknown_items),
        columns.made_by, columns.vectors, repeat(_INTERESTS), columns.interests,
    )  # fmt: skip
    return list(map(b"".join, parts))


def pack_maker(encoder_version: str, space_id: str, dims: int) -> bytes:
    """Pack the fields `encoder_version` to `vector`, without the vector's own bytes."""
    vector = bytes(2 * dims)
    values = (encoder_version, space_id, dims, VECTOR_TYPE, vector)
    return b"".join(name + _packer.pack(v) for name, v in zip(_HEAD[-len(values) :], values, strict=True))[: -len(vector) or None]


def _numbers(values: np.ndarray) -> list[bytes]:
    """(n,) integers -> n packed integers."""
    if len(values) and values.min() >= 1 << 32:  # present-day times in ms: all are uint 64
        packed = np.empty(len(values), [("kind", "u1"), ("value", ">u8")])
        packed["kind"], packed["value"] = 0xCF, values
        out: list[bytes] = packed.view("V9").tolist()
        return out
    return [_packer.pack(v) if v >> 7 else _FIXINT[v] for v in values.tolist()]


_FIXINT = [bytes([n]) for n in range(128)]
_LAST, _EVENTS, _UNKNOWN, _ENCODER = (_packer.pack(name) for name in ("last_event_at", "events", "unknown_items", "encoder_version"))
_IDS = 4400  # upper bound of the head's first fields in bytes, with the longest user_id (1024 characters)
_USER = len(_V + _HEAD[0])  # where user_id's value begins


def is_of(profile: bytes, last_event_at: int, events: int) -> bool:
    """Whether a packed profile has these values of `last_event_at` and `events`. Decodes nothing, because a restore calls it for every row."""
    return profile.find(_LAST + _packer.pack(last_event_at), 0, _IDS) >= 0 and profile.find(_EVENTS + _packer.pack(events), 0, _IDS) >= 0


def is_by(profile: bytes, encoder_version: str) -> bool:
    """Whether a packed profile has this `encoder_version`. Decodes nothing."""
    return profile.find(_ENCODER + _packer.pack(encoder_version), 0, _IDS) >= 0


def unknown_items(profile: bytes) -> int:
    """Return `unknown_items` of a packed profile without decoding the rest. The search begins after user_id, which may contain any text."""
    kind, width = profile[_USER], max(0, profile[_USER] - 0xD8)  # fixstr is a0 to bf, with its length; str8 is d9, str16 da
    length = int.from_bytes(profile[_USER + 1 : _USER + 1 + width], "big") if width else kind & 0x1F
    at = profile.index(_UNKNOWN, _USER + 1 + width + length) + len(_UNKNOWN)
    return int(profile[at]) if profile[at] < 0x80 else int.from_bytes(profile[at + 1 : at + 1 + (1 << profile[at] - 0xCC)], "big")  # uint8 is cc


class Origin(msgspec.Struct, frozen=True):
    """The fields of a profile that name its encoder and its window's newest event."""

    last_event_at: int
    encoder_version: str
    space_id: str


_origin = msgspec.msgpack.Decoder(Origin).decode


def origin(profile: bytes) -> Origin:
    """Decode only the fields of `Origin` of a packed profile."""
    return _origin(profile)


def maker(profile: bytes) -> tuple[str, str]:
    """Return `encoder_version` and `space_id` of a packed profile."""
    made = _origin(profile)
    return made.encoder_version, made.space_id


def by_version(profiles: Sequence[bytes]) -> dict[str, list[int]]:
    """Return `encoder_version` -> indices of the packed profiles with this version. Decodes one profile per version."""
    found, left = dict[str, list[int]](), list(range(len(profiles)))
    while left:
        version = maker(profiles[left[0]])[0]
        mine = [i for i in left[1:] if is_by(profiles[i], version)]
        found[version] = [left[0], *mine]
        left = sorted(set(left[1:]).difference(mine))
    return found


def unpack_profile(data: bytes) -> dict[str, Any]:
    """Decode a packed profile to a dict without `v` and without validating the fields. Takes a third of `decode_profile`'s time.

    Raises ValueError if the bytes are no profile or have another version.
    """
    try:
        row = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a profile: {error}") from None
    if not isinstance(row, dict) or row.pop("v", None) != VERSION:
        raise ValueError(f"not a profile of version {VERSION}")
    return row


def decode_profile(data: bytes) -> Profile:
    """Bytes of `currents.profiles` -> Profile. Raises ValueError if the bytes are no profile, have another version or a vector of another length."""
    row = unpack_map(data, VERSION, "profile")
    try:
        profile = msgspec.convert(row, Profile)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"not a profile: {error}") from None
    if profile.vector_type != VECTOR_TYPE or len(profile.vector) != 2 * profile.dims:
        raise ValueError(f"{profile.user_id}: want {2 * profile.dims} bytes of {VECTOR_TYPE}, got {len(profile.vector)} of {profile.vector_type}")
    return profile
