"""`currents.releases`: what stands there, what it means, and the one record that changes it. `schemas.releases` has the record.

The topic has one partition, so that its offsets put all records in one order, whatever the clocks of those who wrote them said. The newest valid
record of a channel counts. A record that is not valid counts as if it were not there: what is served stays. A record to `serving` ends the trial of
every candidate announced before it. Nobody needs the older records to run, only to go back: the topic is compacted, but no record within a year.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from schemas.releases import CHANNELS, Channel, Release, decode_release, encode_release
from streams.core.cancel import stop
from streams.core.errors import BrokerError
from streams.core.settings import Kafka
from streams.transport.broker_settings import for_aiokafka
from streams.transport.reading import read_to_end, reader

SERVED = ("serving", "promoted", "rolled-back")  # states of a record on `serving`: how it came to be served
TRIED = ("candidate", "shadow", "canary", "refused", "rolled-back", "promoted")  # of one on `candidate`
ON_TRIAL = ("shadow", "canary")
_DIGEST = re.compile("[0-9a-f]{64}")


class ReleaseError(ValueError):
    """A release that cannot be announced, promoted or gone back to: says why."""


class Announced(NamedTuple):
    """One record of the topic."""

    offset: int
    channel: str
    release: Release | None
    """None where the record is not valid."""
    problem: str
    """What is wrong with it; empty where nothing is."""


def announced(offset: int, key: bytes | None, value: bytes | None) -> Announced:
    """A record as read; one that is not valid says in one line what is wrong with it."""
    channel = (key or b"").decode("utf-8", "replace")
    try:
        if channel not in CHANNELS:
            raise ValueError(f"channel {channel!r:.60}: want one of {', '.join(CHANNELS)}")
        return Announced(offset, channel, valid(channel, decode_release(value or b"")), "")
    except ValueError as error:
        return Announced(offset, channel, None, f"release record {offset}: {' '.join(str(error).split()):.300}")


def valid(channel: Channel, release: Release) -> Release:
    """The release itself. Raises ValueError where it does not fit its channel, or does not say what it is."""
    wanted = SERVED if channel == "serving" else TRIED
    if release.state not in wanted:
        raise ValueError(f"state {release.state!r} on channel {channel}: want one of {', '.join(wanted)}")
    if not release.version or not release.space_id:
        raise ValueError("want a version and a space_id")
    if release.bundle and not _DIGEST.fullmatch(release.digest):
        raise ValueError(f"digest {release.digest!r:.80}: want the sha256 of the bundle's manifest.json, 64 hexadecimal digits")
    return release


def heads(history: Sequence[Announced]) -> dict[str, Announced]:
    """Channel -> its newest valid record."""
    return {a.channel: a for a in history if a.release is not None}


def serving(history: Sequence[Announced]) -> Release | None:
    """What is to be served; None while nobody has said."""
    head = heads(history).get("serving")
    return head.release if head else None


def candidate(history: Sequence[Announced]) -> Release | None:
    """The candidate that waits or is on trial: announced after what is served, and neither refused, gone back from, nor promoted."""
    found = heads(history)
    head, served = found.get("candidate"), found.get("serving")
    if head is None or head.release is None or head.release.state not in ("candidate", *ON_TRIAL):
        return None
    ended = served is not None and served.release is not None and (served.offset > head.offset or served.release.version == head.release.version)
    return None if ended else head.release


def trial(history: Sequence[Announced]) -> Release | None:
    """The candidate that workers encode with, in shadow or as a canary."""
    found = candidate(history)
    return found if found is not None and found.state in ON_TRIAL else None


# What may be written: one record each


def proposed(history: Sequence[Announced], release: Release) -> Release:
    """The record for channel `candidate`. Raises ReleaseError while another candidate is on trial: two at once would share users and figures."""
    other = trial(history)
    if other is not None and other.version != release.version:
        raise ReleaseError(f"candidate {other.version} is on trial ({other.state}): promote it or roll it back before {release.version} is announced")
    served = serving(history)
    if served is not None and served.version == release.version and served.digest == release.digest:
        raise ReleaseError(f"{release.version} is what is served")
    return _checked("candidate", release)


def promoted(history: Sequence[Announced], release: Release, previous: str, by: str, why: str, at_ms: int, metrics: Mapping[str, float]) -> Release:
    """The record for channel `serving` with which a release takes over; `previous`: what is served where the topic is empty. Raises ReleaseError."""
    served = serving(history)
    if served is not None and served.version == release.version and served.digest == release.digest:
        raise ReleaseError(f"{release.version} is what is served")
    before = served.version if served else previous
    changed = msgspec.structs.replace(
        release, state="promoted", share=1.0, previous=before, by=by, why=why, at=at_ms, metrics={**release.metrics, **metrics}
    )
    return _checked("serving", changed)


def earlier(history: Sequence[Announced], version: str | None) -> Release | None:
    """The newest record of `serving` with a version, or else with the one before what is served now. Raises ReleaseError where nothing is served."""
    served = serving(history)
    if version is None and served is None:
        raise ReleaseError("nothing was promoted yet: there is nothing to go back from")
    wanted = version or (served.previous if served else "")
    return next((a.release for a in reversed(history) if a.channel == "serving" and a.release and a.release.version == wanted), None)


def restored(history: Sequence[Announced], release: Release, by: str, why: str, at_ms: int) -> Release:
    """The record for channel `serving` with which an earlier release is served again. Raises ReleaseError where it is served already."""
    served = serving(history)
    if served is not None and served.version == release.version and served.digest == release.digest:
        raise ReleaseError(f"{release.version} is what is served")
    before = served.version if served else ""
    return _checked("serving", msgspec.structs.replace(release, state="rolled-back", share=1.0, previous=before, by=by, why=why, at=at_ms))


def ended(
    release: Release, by: str, why: str, at_ms: int, metrics: Mapping[str, float], state: Literal["rolled-back", "refused"] = "rolled-back"
) -> Release:
    """The record for channel `candidate` that ends a trial without promotion."""
    figures = {**release.metrics, **metrics}
    return _checked("candidate", msgspec.structs.replace(release, state=state, share=0.0, by=by, why=why, at=at_ms, metrics=figures))


def _checked(channel: Channel, release: Release) -> Release:
    try:
        return valid(channel, release)
    except ValueError as error:
        raise ReleaseError(f"{release.version or 'a release'}: {error}") from None


# The topic


async def read_history(kafka: Kafka, topic: str) -> list[Announced]:
    """Every record there still is, oldest first. Raises BrokerError."""
    consumer = reader(kafka)
    tp = TopicPartition(topic, 0)
    try:
        await consumer.start()
        first = await consumer.beginning_offsets([tp])
        return [of_record(r) async for _, records in read_to_end(consumer, first) for r in records]
    except (KafkaConnectionError, OSError) as error:
        raise BrokerError(f"kafka.bootstrap = {kafka.bootstrap!r}: no broker answers ({type(error).__name__})") from None
    except KafkaError as error:
        raise BrokerError(f"topic {topic}: cannot be read: {error}; `currents topics --create` makes it") from None
    finally:
        await stop(consumer)


def of_record(record: Any) -> Announced:
    """An aiokafka record -> Announced."""
    return announced(record.offset, record.key, record.value)


async def announce(kafka: Kafka, topic: str, channel: Channel, release: Release) -> int:
    """Write one record, acknowledged by all replicas; its offset. Raises BrokerError."""
    producer = AIOKafkaProducer(**for_aiokafka(kafka), acks="all")
    try:
        await producer.start()
        sent = await producer.send_and_wait(topic, encode_release(release), channel.encode(), partition=0)
        return int(sent.offset)
    except (KafkaError, OSError) as error:
        raise BrokerError(f"topic {topic}: the release was not written: {error}") from None
    finally:
        await producer.stop()
