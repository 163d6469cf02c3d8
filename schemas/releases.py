"""A release record: which encoder a channel has, and in what state. Value of `currents.releases` (key = the channel, UTF-8): a MessagePack map.

    {"v": 1, "version": str, "space_id": str, "bundle": str, "digest": str, "state": str, "share": float, "previous": str,
     "at": ms, "by": str, "why": str, "metrics": {str: float}}

Channel `serving` is what workers publish with, `candidate` what may take its place. The newest record of a channel counts. To go back is to write an
earlier record to `serving` again: bundles are never changed.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import msgpack
import msgspec

from schemas.items import unpack_map

VERSION = 1
State = Literal["serving", "candidate", "shadow", "canary", "refused", "rolled-back", "promoted"]
Channel = Literal["serving", "candidate"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)


class Release(msgspec.Struct, frozen=True):
    """A bundle on a channel."""

    version: str
    """As in the bundle's manifest; `baseline` for the day-0 encoder."""
    space_id: str
    """Of the interest vectors. Vectors of two spaces are never compared."""
    bundle: str
    """Folder or fsspec URL of the bundle; empty for the day-0 encoder."""
    digest: str
    """sha256 of its manifest.json, hex; empty for the day-0 encoder."""
    state: State
    share: float
    """Of the users that a canary encodes; 0 in shadow."""
    previous: str
    """Version that was on the channel before."""
    at: int
    """When it was announced, ms."""
    by: str
    """Who or what announced it."""
    why: str
    """In words: the gate's findings, the reason for going back."""
    metrics: dict[str, float] = {}
    """What was measured: offline for a candidate, online for one that was promoted or rolled back."""


def encode_release(release: Release) -> bytes:
    """Release -> bytes of `currents.releases`."""
    return bytes(msgpack.packb({"v": VERSION, **msgspec.structs.asdict(release)}))


def decode_release(data: bytes) -> Release:
    """Bytes of `currents.releases` -> Release. Raises ValueError on other bytes, another version, or a share that is none."""
    try:
        release = msgspec.convert(unpack_map(data, VERSION, "release"), Release)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"not a release: {error}") from None
    if not 0 <= release.share <= 1:
        raise ValueError(f"not a release: share = {release.share}, want 0 to 1")
    return release


@dataclass(frozen=True)
class Rules:
    """When a trial ends."""

    alpha: float = 0.05
    """Chance of being wrong, over the whole trial."""
    tolerated: float = 0.01
    """Hit rate that a promoted candidate may have lost at most."""
    least: int = 500
    """Events before anything is decided: the interval is asymptotic."""
    most: int = 100_000
    """Events after which a candidate that is still not known to be good enough goes."""
    failures: int = 3
    """Batches that a candidate may fail to encode before it goes."""
    later_ms: float = 100.0
    """By how much older a candidate may make the profiles of half of all batches."""
    timed: int = 10
    """Batches on which both were timed before a candidate is promoted."""
