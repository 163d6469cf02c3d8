"""A log and a consumer group in memory. Replaces aiokafka below Faust's consumer thread, so that tests decide when the broker answers."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

POLL_S = 0.005
PATIENCE_S = 30.0


async def until(true: Callable[[], object], what: str = "it") -> None:
    """Wait in the current event loop until `true` returns a true value; other threads run meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
        await asyncio.sleep(POLL_S)


class Kafka:
    """Owns one partition, its group's only member, and the broker's permissions: to `fetch`, to `deliver` fetched records, to `seek`, to `answer`
    a seek."""

    def __init__(self, topic: str, records: int, committed: int | None) -> None:
        self.tp, self.end, self.committed = TopicPartition(topic, 0), records, committed
        self.position: int | None = None
        self.taken = 0
        """Offsets below this one were fetched at some time."""
        self.idle = 0
        """Number of fetches that found no records."""
        self.fetch, self.deliver, self.seek, self.answer = (threading.Event() for _ in range(4))
        for may in (self.fetch, self.deliver, self.seek, self.answer):
            may.set()
        self.sought = False
        self.seeks: list[bool] = []
        """For every seek to an offset, whether the consumer's own thread called it."""
        self.client: Any = None

    def consumer(self, **kwargs: Any) -> "Client":
        """Return the client that Faust gets instead of an AIOKafkaConsumer."""
        client = self.client = Client(self, kwargs["max_poll_records"])
        return client

    async def rebalance(self, has: bool) -> None:
        """Start the next generation, with or without the partition, and notify Faust as aiokafka's coordinator does."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._rebalance(has), self.client.loop))

    async def _rebalance(self, has: bool) -> None:
        client = self.client
        await client.listener.on_partitions_revoked(client.assignment())
        client._coordinator.generation += 1
        self.position, self.sought, client.has = None, False, has
        await client.listener.on_partitions_assigned(client.assignment())


class Client:
    """Owns the consumer side of the log: the part of AIOKafkaConsumer that Faust uses. All methods run in Faust's consumer thread."""

    def __init__(self, kafka: Kafka, max_poll_records: int) -> None:
        self.kafka, self.has, self._closed, self._max_poll_records = kafka, False, False, max_poll_records
        self._coordinator = SimpleNamespace(generation=0, _do_heartbeat=None, _perform_assignment=None)
        self._client = None
        self._subscription = subscriptions = SimpleNamespace(fetch_context=contextlib.nullcontext)
        self._fetcher = SimpleNamespace(_closed=False, _records={}, _subscriptions=subscriptions, fetched_records=self.fetched_records)
        self.loop: asyncio.AbstractEventLoop
        self.listener: Any = None

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        self._closed = self._fetcher._closed = True

    def subscribe(self, topics: object, listener: Any) -> None:
        self.listener = listener

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset({self.kafka.tp} if self.has else ())

    def highwater(self, tp: TopicPartition) -> int:
        return self.kafka.end

    async def beginning_offsets(self, tps: object) -> dict[TopicPartition, int]:
        return {self.kafka.tp: 0}

    async def seek_to_committed(self) -> Mapping[TopicPartition, int | None]:
        """As in aiokafka: a partition without a commit keeps its position."""
        k = self.kafka
        await until(k.seek.is_set)
        if k.committed:
            k.position = k.committed
        k.sought = True
        await until(k.answer.is_set)
        return {k.tp: k.committed}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.kafka.position = offset
        self.kafka.seeks.append(asyncio.get_running_loop() is self.loop)

    async def commit(self, offsets: Mapping[TopicPartition, Any]) -> None:
        self.kafka.committed = offsets[self.kafka.tp].offset

    async def fetched_records(self, partitions: set[Any], timeout: float, max_records: int) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]:
        """As in aiokafka: the position moves past the returned records. `partitions` may change during the wait; an empty set means all."""
        k, deadline = self.kafka, time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.has and k.fetch.is_set() and (not partitions or k.tp in partitions):
                first = (k.committed or 0) if k.position is None else k.position
                found = [record(k.tp, offset) for offset in range(first, min(k.end, first + max_records))]
                if found:
                    k.position = found[-1].offset + 1
                    k.taken = max(k.taken, k.position)
                    await until(k.deliver.is_set)
                    return {k.tp: found}
                k.idle += 1
            await asyncio.sleep(POLL_S)
        return {}


class Producer:
    """An AIOKafkaProducer that sends nothing."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    async def start(self) -> None:
        pass

    stop = flush = start


def record(tp: TopicPartition, offset: int) -> ConsumerRecord[Any, Any]:
    """Return a record whose content names its partition and offset."""
    return ConsumerRecord(tp.topic, tp.partition, offset, 0, 0, None, b"%d" % offset, None, 0, 0, ())


def queued(queues: Iterator[Any]) -> int:
    """Return the number of messages that no agent has taken yet."""
    return sum(q.qsize() for q in queues)
