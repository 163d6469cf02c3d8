"""What the command line does with Kafka: produce, follow profiles, look at dead letters."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from schemas.deadletters import DeadLetter, decode_dead_letter
from schemas.mapping import Mapper, Rejected
from schemas.profiles import Profile, decode_profile
from streams.core.settings import Settings
from streams.ingest.normalise import mappers
from streams.releases.release_log import Announced, of_record
from streams.transport.topics import DEAD_LETTER_BYTES, BrokerError, client_config

ANSWER_S = 30.0
IDLE_S = 1.5  # a log that says nothing for this long has ended


class InputError(ValueError):
    """A user's file or argument that cannot be used: says where."""


def producer(settings: Settings) -> KafkaProducer:
    """A producer that waits for all replicas. Raises BrokerError."""
    try:
        return KafkaProducer(
            **client_config(settings.kafka), acks="all", linger_ms=20, batch_size=256 << 10, max_request_size=DEAD_LETTER_BYTES,
            enable_idempotence=False, bootstrap_timeout_ms=5000,
        )  # fmt: skip
    except (KafkaError, OSError) as error:
        raise BrokerError(f"kafka.bootstrap = {settings.kafka.bootstrap!r}: no broker answers ({type(error).__name__})") from None


def consumer(settings: Settings, **config: Any) -> KafkaConsumer:
    """A consumer without group. Raises BrokerError."""
    fixed = {
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "max_partition_fetch_bytes": DEAD_LETTER_BYTES,
        "bootstrap_timeout_ms": 5000,
    }
    try:
        return KafkaConsumer(**client_config(settings.kafka), **{**fixed, **config})
    except (KafkaError, OSError) as error:
        raise BrokerError(f"kafka.bootstrap = {settings.kafka.bootstrap!r}: no broker answers ({type(error).__name__})") from None


def partitions(client: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """All partitions of a topic. Raises BrokerError if there is none."""
    found = client.partitions_for_topic(topic)
    if not found:
        raise BrokerError(f"topic {topic} does not exist: run `currents topics --create`")
    return [TopicPartition(topic, p) for p in sorted(found)]


def extent(settings: Settings, topics: Iterable[str]) -> dict[TopicPartition, tuple[int, int]]:
    """What is there of some topics: partition -> first offset, and the one after the last. Raises BrokerError.

    The end is the high watermark of the fetch responses: the only figure that every broker gets right.
    """
    client = consumer(settings)
    try:
        tps = [tp for topic in topics for tp in partitions(client, topic)]
        first, last = client.beginning_offsets(tps), client.end_offsets(tps)
        client.assign(tps)
        for tp in tps:
            client.seek(tp, last[tp])
        deadline = time.monotonic() + ANSWER_S
        while None in (found := {tp: client.highwater(tp) for tp in tps}).values():
            if time.monotonic() > deadline:
                raise BrokerError(f"topic {next(tp for tp in tps if found[tp] is None).topic}: no answer to a fetch in {ANSWER_S:.0f} s")
            client.poll(100)
        return {tp: (first[tp], found[tp]) for tp in tps}
    finally:
        client.close()


def produce(settings: Settings, lines: Iterable[bytes], platform: str, items: bool, rate: float, raw: bool, progress: Callable[[int], None]) -> int:
    """JSON lines to a platform's topic, acknowledged; returns how many. Raises InputError naming the line."""
    mapping = next((p for p in settings.platforms if p.name == platform), None)
    if mapping is None:
        known = ", ".join(p.name for p in settings.platforms) or "none; add [[platforms]] to the settings file"
        raise InputError(f"--platform {platform}: not in the settings, want one of {known}")
    topic = mapping.items_topic if items else mapping.topic
    if not topic:
        raise InputError(f"--platform {platform}: has no items topic")
    client = producer(settings)
    mapper, failed, n, began = mappers(settings)[platform], list[BaseException](), 0, time.monotonic()
    try:
        if not client.partitions_for(topic):
            raise BrokerError(f"topic {topic} does not exist: run `currents topics --create`")
        for number, line in enumerate(lines, 1):
            value = line.rstrip(b"\r\n")
            if not value.strip():
                continue
            if not raw:
                _check_line(value, number)
            client.send(topic, value, key_of(mapper, value, items)).add_errback(failed.append)
            n += 1
            if rate and n % 20 == 0:
                time.sleep(max(0.0, n / rate - (time.monotonic() - began)))
            progress(n)
        client.flush(timeout=60)
    except KafkaTimeoutError:
        raise BrokerError(f"topic {topic}: does not exist or does not answer; run `currents topics`") from None
    finally:
        client.close(timeout=5)
    if failed:
        raise BrokerError(f"topic {topic}: {len(failed)} of {n} records were not taken: {failed[0]}")
    return n


def _check_line(value: bytes, number: int) -> None:
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InputError(f"line {number}: not JSON: {error} (--raw sends it all the same)") from None


def key_of(mapper: Mapper, value: bytes, items: bool) -> bytes | None:
    """The account of an event, or the id of an item, if the mapping finds it."""
    if items:
        item = mapper.item(value)
        return None if isinstance(item, Rejected) else item.item.split(":", 1)[1].encode()
    events = mapper.events(value, "", 0, 0, time.time_ns() // 1_000_000)
    return None if isinstance(events, Rejected) or not events else events[0].account.encode()


def follow(settings: Settings, users: set[str], from_beginning: bool) -> Iterator[tuple[str, Profile | None]]:
    """(user, profile) as the changelog says it, without end; None = erased."""
    for r in _tail(settings, "profiles", from_beginning):
        user = r.key.decode("utf-8", "replace")
        if not users or user in users:
            yield user, decode_profile(r.value) if r.value else None


def follow_releases(settings: Settings, from_beginning: bool) -> Iterator[Announced]:
    """Records of the topic of releases, without end."""
    yield from map(of_record, _tail(settings, "releases", from_beginning))


def _tail(settings: Settings, topic: str, from_beginning: bool) -> Iterator[Any]:
    """Records of one of our topics, without end."""
    client = consumer(settings)
    tps = partitions(client, settings.topic(topic))
    client.assign(tps)
    client.seek_to_beginning(*tps) if from_beginning else client.seek_to_end(*tps)
    while True:
        for records in client.poll(500).values():
            yield from records


def dead_letters(settings: Settings) -> Iterator[tuple[Any, DeadLetter]]:
    """(record, letter) of the whole topic."""
    client = consumer(settings)
    try:
        tps = partitions(client, settings.topic("dead-letters"))
        client.assign(tps)
        client.seek_to_beginning(*tps)
        last = time.monotonic()
        while time.monotonic() - last < IDLE_S:
            for records in client.poll(300).values():
                for r in records:
                    last = time.monotonic()
                    yield r, decode_dead_letter(r.value)
    finally:
        client.close()
