"""Rows to Kafka, one request per batch instead of one future per row; and the partition of a key."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from murmurhash2 import murmurhash2

_SEED = 0x9747B28C  # of Kafka's default partitioner

Row = tuple[bytes | None, bytes | None, int]
"""Key, value, timestamp in ms."""
HeadedRow = tuple[bytes | None, bytes | None, int, Sequence[tuple[str, bytes | None]]]
"""A row with headers."""


def partition_of(key: bytes, partitions: int) -> int:
    """Kafka's own choice: murmur2 of the raw key bytes."""
    return int((murmurhash2(key, _SEED) & 0x7FFFFFFF) % partitions)


def by_partition(rows: Iterable[Row], partitions: int) -> dict[int, list[Row]]:
    """Rows by the partition of their key; a row without key goes to partition 0."""
    parts: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        parts[partition_of(row[0], partitions) if row[0] is not None else 0].append(row)
    return parts


class Sender:
    """Sends rows by an aiokafka producer and waits for the brokers: when a call returns, every row is acknowledged, in order within its partition."""

    def __init__(self, producer: Callable[[], Any]) -> None:
        self._producer = producer

    async def send(self, topic: str, parts: Mapping[int, Sequence[Row | HeadedRow]]) -> dict[int, int]:
        """Rows by partition -> offset of the last row in each partition. Raises what the broker answered."""
        sent = [(p, n, future) for p, rows in parts.items() if rows for n, future in await self._batches(topic, p, rows)]
        last: dict[int, int] = {}
        for partition, count, future in sent:
            last[partition] = (await future).offset + count - 1
        return last

    async def send_all(self, topics: Mapping[str, Mapping[int, Sequence[Row | HeadedRow]]]) -> dict[str, dict[int, int]]:
        """`send` on several topics at once."""
        done = await asyncio.gather(*(self.send(topic, parts) for topic, parts in topics.items()))
        return dict(zip(topics, done, strict=True))

    async def _batches(self, topic: str, partition: int, rows: Sequence[Row | HeadedRow]) -> list[tuple[int, Any]]:
        producer = self._producer()
        sent, batch = [], producer.create_batch()
        for key, value, at, *more in rows:
            headers: Any = list(more[0]) if more else []
            if batch.append(key=key, value=value, timestamp=at, headers=headers) is None:
                sent.append((batch.record_count(), await producer.send_batch(batch, topic, partition=partition)))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=at, headers=headers)
        batch.close()
        sent.append((batch.record_count(), await producer.send_batch(batch, topic, partition=partition)))
        return sent
