"""A release record: the encoder of a channel and its state. Value of `currents.releases` (key = the channel, UTF-8): a MessagePack map.

    {"v": 1, "version": str, "space_id": str, "bundle": str, "digest": str, "state": str, "share": float, "previous": str,
     "at": ms, "by": str, "why": str, "metrics": {str: float}}

Workers publish with the encoder of channel `serving`. The encoder of channel `candidate` may replace it. The newest record of a channel counts. A
rollback writes an earlier record to `serving` again: bundles never change.
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
    """Version in the bundle's manifest; `baseline` for the day-0 encoder."""
    space_id: str
    """Space of the interest vectors. Vectors of two spaces are never compared."""
    bundle: str
    """Folder or fsspec URL of the bundle; empty for the day-0 encoder."""
    digest: str
    """sha256 of the bundle's manifest.json, hex; empty for the day-0 encoder."""
    state: State
    share: float
    """Share of users that a canary encodes, 0..1; 0 in shadow."""
    previous: str
    """Previous version on the channel."""
    at: int
    """Time of the announcement, ms."""
    by: str
    """Person or program that announced the release."""
    why: str
    """Reason in words: the gate's findings, the reason for a rollback."""
    metrics: dict[str, float] = {}
    """Measurements: offline for a candidate, online for a promoted or rolled-back release."""


def encode_release(release: Release) -> bytes:
    """Release -> bytes of `currents.releases`."""
    return bytes(msgpack.packb({"v": VERSION, **msgspec.structs.asdict(release)}))


def decode_release(data: bytes) -> Release:
    """Bytes of `currents.releases` -> Release. Raises ValueError if the bytes are no release, have another version or a share outside 0..1."""
    try:
        release = msgspec.convert(unpack_map(data, VERSION, "release"), Release)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"not a release: {error}") from None
    if not 0 <= release.share <= 1:
        raise ValueError(f"not a release: share = {release.share}, want 0 to 1")
    return release


@dataclass(frozen=True)
class Rules:
    """Owns the bounds that end the online comparison of a candidate with the serving encoder."""

    alpha: float = 0.05
    """Probability of a wrong decision over the whole comparison."""
    tolerated: float = 0.01
    """Largest loss of hit rate with which a candidate may be promoted."""
    least: int = 500
    """Minimum number of events before a decision, because the confidence interval is asymptotic."""
    most: int = 100_000
    """Number of events after which an undecided candidate is rejected."""
    failures: int = 3
    """Number of batches that a candidate may fail to encode before it is rejected."""
    later_ms: float = 100.0
    """Largest median delay, over batches, that a candidate may add to the age of profiles."""
    timed: int = 10
    """Number of batches on which both encoders must be timed before a promotion."""
