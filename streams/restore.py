"""Tablets from their changelogs: a bulk reader, beside Faust, that goes straight into write batches."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.helpers import create_ssl_context

from encoder.features import UNKNOWN, ItemTable
from schemas.windows import DTYPE, ROW_BYTES, check
from streams.settings import Kafka
from streams.tablets import STALE_MS, Tablet, Tablets, key_bytes, now_ms

log = logging.getLogger("currents.restore")
CHUNK = 20_000  # records of one read
FETCH_BYTES = 8 << 20


def reader(kafka: Kafka) -> AIOKafkaConsumer:
    """A consumer without group, for reading whole partitions."""
    return AIOKafkaConsumer(**aio_config(kafka), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest",
                            max_partition_fetch_bytes=FETCH_BYTES, fetch_max_wait_ms=100)  # fmt: skip


def aio_config(kafka: Kafka) -> dict[str, Any]:
    """Connection arguments for aiokafka."""
    config: dict[str, Any] = {"bootstrap_servers": kafka.bootstrap, "security_protocol": kafka.security_protocol}
    if kafka.security_protocol.endswith("SSL"):
        config["ssl_context"] = create_ssl_context(cafile=str(kafka.ssl_ca_file) if kafka.ssl_ca_file else None)
    if kafka.sasl_password:
        config |= {"sasl_mechanism": kafka.sasl_mechanism, "sasl_plain_username": kafka.sasl_username}
        config["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    return config


async def read_to_end(consumer: AIOKafkaConsumer, start: dict[TopicPartition, int]) -> AsyncIterator[tuple[TopicPartition, list[Any]]]:
    """Records of each partition from its start offset to the end of the log as it is when reached.

    The end is the high watermark of the fetch responses: the only figure that every broker gets right.
    """
    consumer.assign(list(start))
    for tp, offset in start.items():
        consumer.seek(tp, offset)
    todo = set(start)
    while todo:
        for tp, records in (await consumer.getmany(*todo, timeout_ms=200, max_records=CHUNK)).items():
            yield tp, records
        for tp in list(todo):
            end = consumer.highwater(tp)
            if end is not None and await consumer.position(tp) >= end:
                todo.discard(tp)


async def restore(tablet: Tablet, tablets: Tablets, kafka: Kafka, topics: tuple[str, str], table: ItemTable, count: Callable[[int], None]) -> None:
    """Bring a tablet up to the end of its two changelogs (windows, profiles).

    Reads what is newer than what is there; a tablet that is stale, or that knows more than the log, is emptied first.
    """
    began, rows = time.perf_counter(), 0
    windows = topics[0]
    consumer = reader(kafka)
    await consumer.start()
    try:
        parts = {name: TopicPartition(name, tablet.partition) for name in topics}
        first, end = await consumer.beginning_offsets(list(parts.values())), await consumer.end_offsets(list(parts.values()))
        have = {name: tablet.offset(name) for name in topics}
        if any(at and (now_ms() - at > STALE_MS or not first[parts[t]] <= offset + 1 <= end[parts[t]]) for t, (offset, at) in have.items()):
            log.info("tablet %d: does not continue its changelog, emptied", tablet.partition)
            tablets.wipe(tablet)
            have = dict.fromkeys(topics, (-1, 0))
        start = {parts[name]: max(offset + 1, first[parts[name]]) for name, (offset, _) in have.items()}
        async for tp, records in read_to_end(consumer, start):
            latest = {r.key: r.value for r in records}
            offsets = {tp.topic: records[-1].offset}
            if tp.topic == windows:
                write = partial(tablet.write, windows=latest.items(), waiting=awaited(latest, table))
            else:
                write = partial(tablet.write, profiles=latest.items())
            await asyncio.to_thread(write, offsets=offsets, now_ms=now_ms())
            rows += len(records)
            count(len(records))
    finally:
        await consumer.stop()
    log.info("tablet %d: %d rows restored in %.2f s", tablet.partition, rows, time.perf_counter() - began)


def awaited(windows: Mapping[bytes, bytes | None], table: ItemTable) -> list[tuple[bytes, bytes]]:
    """(8-byte item key, user) for every item of these windows that has no vector."""
    users = [u for u, w in windows.items() if w]
    bodies = [check(w)[1:] for w in windows.values() if w]
    keys = np.frombuffer(b"".join(bodies), DTYPE)["item_key"]
    unknown = np.flatnonzero(table.index(keys) == UNKNOWN)
    owner = np.repeat(np.arange(len(users)), [len(b) // ROW_BYTES for b in bodies])[unknown]
    pairs = set(zip(keys[unknown].tolist(), owner.tolist(), strict=True))
    return [(key_bytes(key), users[n]) for key, n in pairs]
