"""Records as they are fetched: seven fields, where aiokafka makes a dataclass of eleven for each. The only file that knows its fetcher's inside."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult


class Record(msgspec.Struct, gc=False):
    """A record of a topic; its time in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


def _record(tp: TopicPartition, r: Any) -> Record:
    return Record(tp.topic, tp.partition, r.offset, r.timestamp, r.key, r.value, r.headers or ())


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What was fetched and not yet read. Records are made of it while it is read, by a method that is replaced here."""

    def __setitem__(self, tp: TopicPartition, found: Any) -> None:
        if isinstance(found, FetchResult):
            found._partition_records._consumer_record = _record
        super().__setitem__(tp, found)


def light(consumer: AIOKafkaConsumer) -> None:
    """Let a consumer that was started hand out Records."""
    consumer._fetcher._records = _Fetched(consumer._fetcher._records)


class LightConsumer(AIOKafkaConsumer):
    """A consumer that hands out Records."""

    async def start(self) -> None:
        """As ever."""
        await super().start()
        light(self)
