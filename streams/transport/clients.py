"""What the command line does with Kafka: produce, follow profiles, look at dead letters."""

import time
from collections.abc import Iterable
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from streams.core.errors import BrokerError
from streams.core.settings import Settings
from streams.transport.broker_settings import for_kafka_python
from streams.transport.refusals import refusal
from streams.transport.topics import DEAD_LETTER_BYTES

ANSWER_S = 30.0


def producer(settings: Settings) -> KafkaProducer:
    """A producer that waits for all replicas. Raises BrokerError."""
    try:
        return KafkaProducer(
            **for_kafka_python(settings.kafka), acks="all", linger_ms=20, batch_size=256 << 10, max_request_size=DEAD_LETTER_BYTES,
            enable_idempotence=False, bootstrap_timeout_ms=5000,
        )  # fmt: skip
    except (KafkaError, OSError) as error:
        why = refusal(settings.kafka) or f"no broker answers ({type(error).__name__})"
        raise BrokerError(f"kafka.bootstrap = {settings.kafka.bootstrap!r}: {why}") from None


def consumer(settings: Settings, **config: Any) -> KafkaConsumer:
    """A consumer without group. Raises BrokerError."""
    fixed = {
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "max_partition_fetch_bytes": DEAD_LETTER_BYTES,
        "bootstrap_timeout_ms": 5000,
    }
    try:
        return KafkaConsumer(**for_kafka_python(settings.kafka), **{**fixed, **config})
    except (KafkaError, OSError) as error:
        why = refusal(settings.kafka) or f"no broker answers ({type(error).__name__})"
        raise BrokerError(f"kafka.bootstrap = {settings.kafka.bootstrap!r}: {why}") from None


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
