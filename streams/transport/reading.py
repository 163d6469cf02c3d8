"""Readers of whole topics, beside Faust: no consumer group, from an offset to the end of the log."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from streams.core.cancel import stop
from streams.core.settings import Kafka
from streams.transport.broker_settings import for_aiokafka
from streams.transport.light_records import LightConsumer

CHUNK = 20_000  # records of one read
FETCH_BYTES = 1 << 20  # of a partition at once: larger ones are slower, for every one is memory that is new to the process


def reader(kafka: Kafka, reset: str = "earliest", wait_ms: int = 100) -> AIOKafkaConsumer:
    """A consumer without group, for reading whole partitions.

    `reset`: what an offset that the log does not have leads to. `wait_ms`: how long the broker holds a fetch that finds nothing.
    """
    return LightConsumer(**for_aiokafka(kafka), group_id=None, enable_auto_commit=False, auto_offset_reset=reset,
                         max_partition_fetch_bytes=FETCH_BYTES, fetch_max_wait_ms=wait_ms)  # fmt: skip


async def answers(kafka: Kafka, seconds: float) -> bool:
    """Whether any broker answers in time."""
    client = AIOKafkaClient(**for_aiokafka(kafka))
    try:
        await asyncio.wait_for(client.bootstrap(), seconds)
        return True
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await client.close()


async def read_to_end(
    consumer: AIOKafkaConsumer, start: dict[TopicPartition, int], wait_ms: int = 200
) -> AsyncIterator[tuple[TopicPartition, list[Any]]]:
    """Records of each partition from its start offset to the end of the log as it is when reached.

    The end is the high watermark of the fetch responses: the only figure that every broker gets right.
    """
    consumer.assign(list(start))
    for tp, offset in start.items():
        consumer.seek(tp, offset)
    todo = set(start)
    while todo:
        for tp, records in (await consumer.getmany(*todo, timeout_ms=wait_ms, max_records=CHUNK)).items():
            yield tp, records
        for tp in list(todo):
            end = consumer.highwater(tp)
            if end is not None and await consumer.position(tp) >= end:
                todo.discard(tp)


async def read_topic(kafka: Kafka, topic: str, partitions: int) -> list[Any]:
    """Every record of a topic, in order within its partition."""
    consumer = reader(kafka)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        first = await consumer.beginning_offsets(tps)
        return [record async for _, records in read_to_end(consumer, first) for record in records]
    finally:
        await stop(consumer)
