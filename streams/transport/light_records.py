"""Records as they are fetched: seven fields, where aiokafka makes a dataclass of eleven for each; and from where to where a fetch has looked.

This file and `isolation.py` are the only ones that know the inside of aiokafka's fetcher.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult


class Record(msgspec.Struct, gc=False):
    """A record of a topic; its time in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Fetched(list[Record]):
    """Records of one partition. The log has no others from the offset `first` to before the offset `end`: what lies between them are markers and
    aborted records of transactions, or was compacted away."""

    def __init__(self, records: Iterable[Record], first: int, end: int) -> None:
        super().__init__(records)
        self.first, self.end = first, end


class _Result(FetchResult):
    """What a fetch returned for one partition; tells from where to where it was read."""

    def getall(self, max_records: int | None = None) -> list[Record]:
        unread = self._partition_records
        if unread is None or not self.check_assignment(self._topic_partition):
            return []
        state, first = self._assignment.state_value(self._topic_partition), unread.next_fetch_offset
        records = super().getall(max_records)
        before = getattr(state, "empty", None)
        if before is not None and before[1] == first:
            first = before[0]
        state.empty = None if records else (first, unread.next_fetch_offset)
        return Fetched(records, first, unread.next_fetch_offset) if records else []


fetcher.FetchResult = _Result  # aiokafka asks for exactly this type: an instance of a subclass would be taken for an error


def empty_range(consumer: AIOKafkaConsumer, tp: TopicPartition) -> tuple[int, int] | None:
    """(first offset, the one after the last) of what the newest fetches of an assigned partition passed without any record."""
    assignment = getattr(getattr(consumer._subscription, "subscription", None), "assignment", None)
    return getattr(assignment.state_value(tp), "empty", None) if assignment is not None and tp in assignment.tps else None


def _record(tp: TopicPartition, r: Any) -> Record:
    return Record(tp.topic, tp.partition, r.offset, r.timestamp, r.key, r.value, r.headers or ())


class _Buffer(OrderedDict[TopicPartition, Any]):
    """What was fetched and not yet read. Records are made of it while it is read, by a method that is replaced here."""

    def __init__(self, found: Any, committed: Collection[str]) -> None:
        self.committed = committed
        super().__init__(found)

    def __setitem__(self, tp: TopicPartition, found: Any) -> None:
        if isinstance(found, FetchResult):
            found._partition_records._consumer_record = _record
            if tp.topic in self.committed:
                found._partition_records._isolation_level = READ_COMMITTED
        super().__setitem__(tp, found)


def light(consumer: AIOKafkaConsumer, committed: Collection[str] = ()) -> None:
    """Let a consumer that was started hand out Records; of the topics `committed` none of aborted transactions."""
    consumer._fetcher._records = _Buffer(consumer._fetcher._records, committed)


class LightConsumer(AIOKafkaConsumer):
    """A consumer that hands out Records."""

    async def start(self) -> None:
        """As ever."""
        await super().start()
        light(self)
