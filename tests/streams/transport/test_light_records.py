"""Fetched records."""

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import Fetcher, FetchError, FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import Assignment
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from streams.transport.light_records import Record, light

TP = TopicPartition("t", 3)
ROWS: list[tuple[int, bytes | None, bytes | None, Any]] = [(7, b"k", b"v", [("h", b"x"), ("h", None)]), (8, None, b"w", ()), (9, b"k", None, ())]


class Consumer:
    """As far as records are taken from it."""

    def __init__(self) -> None:
        self._fetcher: Any = Fetcher.__new__(Fetcher)
        self._fetcher._records = {}


@pytest.mark.parametrize("most", [None, 2])
def test_light(most: int | None) -> None:
    """A record has its topic, partition, offset, time, key, value and headers; an error of a fetch stays one."""

    async def scenario() -> None:
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 20)
        for n, (at, key, value, headers) in enumerate(ROWS):
            builder.append(n, at, key, value, list(headers))
        assignment = Assignment([TP])
        assignment.state_value(TP).reset_to(0)
        consumer = Consumer()
        light(consumer)
        unread = PartitionRecords(TP, MemoryRecords(bytes(builder.build())), [], 0, None, None, True, 0)
        consumer._fetcher._records[TP] = FetchResult(TP, assignment=assignment, partition_records=unread, backoff=0)
        found = consumer._fetcher._records[TP].getall(most)
        assert found == [Record("t", 3, n, *row) for n, row in enumerate(ROWS)][:most]
        assert assignment.state_value(TP).position == len(found)
        error = FetchError(error=ValueError(), backoff=0)
        consumer._fetcher._records[TP] = error
        assert consumer._fetcher._records[TP] is error

    asyncio.run(scenario())
