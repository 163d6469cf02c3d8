"""Topics that a process follows without end, beside Faust: item vectors, and the profile changelog of a read replica."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from schemas.rows import bad_profiles
from streams.core.cancel import stop
from streams.core.clock import now_ms
from streams.core.settings import Kafka
from streams.monitoring.rejected import Rejected
from streams.state.item_store import ItemStore
from streams.state.tablet import Tablet
from streams.state.tablets import FLUSH_S, STALE_MS, Tablets
from streams.transport.reading import CHUNK, read_to_end, reader

log = logging.getLogger("currents.following")
BEHIND = "x-currents-behind"
NOTE_MS = 30_000  # between notes of how far an idle partition is followed


async def follow_items(
    kafka: Kafka,
    topic: str,
    partitions: int,
    store: ItemStore,
    pool: Executor,
    ready: asyncio.Event,
    arrived: Callable[[list[int]], None],
    rejected: Rejected,
) -> None:
    """Follow the whole topic of item vectors into a store, on the thread that uses it; `ready` once its end was reached for the first time."""
    loop, consumer = asyncio.get_running_loop(), reader(kafka)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        ends = await consumer.end_offsets(tps)
        start = {tp: n if (n := store.next_offset(tp)) <= ends[tp] else 0 for tp in tps}

        async def apply(tp: Any, records: list[Any]) -> None:
            rows = [(r.key, r.value) for r in records]
            put = partial(store.apply, rows, tp, records[-1].offset, lambda n, error: rejected(records[n], error))
            arrived(await loop.run_in_executor(pool, put))

        async for tp, records in read_to_end(consumer, start):
            await apply(tp, records)
        ready.set()
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=1000, max_records=2000)).items():
                await apply(tp, records)
    finally:
        await stop(consumer)


@dataclass(frozen=True)
class Behind:
    """How far a follower is behind its topic."""

    records: int | None
    """Written and not yet here; None before the brokers have said how many there are."""
    seconds: float | None
    """Everything that was written longer ago than this is here; None before the end was reached for the first time."""

    def within(self, records: int, seconds: float) -> bool:
        """Whether both are known and neither is above its bound."""
        return self.records is not None and self.seconds is not None and self.records <= records and self.seconds <= seconds


def header(behind: Behind) -> dict[str, str]:
    """`x-currents-behind: records=12, seconds=0.104`; what is not known is left out (a dictionary of RFC 9651)."""
    known = ([] if behind.records is None else [f"records={behind.records}"]) + ([] if behind.seconds is None else [f"seconds={behind.seconds:.3f}"])
    return {BEHIND: ", ".join(known)} if known else {}


class Follower:
    """Keeps the profiles of tablets as the changelog says, one tablet a partition. Writes happen on `pool`, small ones while little comes.

    `seconds` of Behind is a promise, not an estimate: the end of a partition was reached by a fetch answered so long ago. It also grows while
    the brokers are away.
    """

    def __init__(self, kafka: Kafka, topic: str, tablets: Tablets, pool: Executor, count: Callable[[int], None], rejected: Rejected) -> None:
        self._topic, self._tablets, self._pool, self._count, self._rejected = topic, tablets, pool, count, rejected
        self._consumer: AIOKafkaConsumer = reader(kafka, reset="none")
        self._tps = [TopicPartition(topic, t.partition) for t in tablets]
        self._next: dict[int, int] = {}  # partition -> offset of the next row to be applied
        self._at: dict[int, int] = {}  # partition -> ms, noted beside the offset: when the end was last reached, or else the first row read
        self._reached: dict[int, int] = {}  # partition -> ms of the last fetch that reached the end; only of this run

    def behind(self, partitions: Iterable[int], at_ms: int) -> Behind:
        """The sum of records and the most seconds of some partitions, at a time."""
        ps = list(partitions)
        ends = [self._end(p) for p in ps]
        reached = [self._reached.get(p) for p in ps]
        records = None if None in ends else sum(max(0, end - self._next[p]) for p, end in zip(ps, ends, strict=True) if end is not None)
        seconds = None if None in reached else max((max(0, at_ms - at) for at in reached if at is not None), default=0) / 1000
        return Behind(records, seconds)

    def _end(self, partition: int) -> int | None:
        tp = TopicPartition(self._topic, partition)
        if partition not in self._next:
            return None
        end: int | None = self._consumer.highwater(tp)
        return end

    async def follow(self) -> None:
        """Go on from the offsets that the tablets have, without end. A tablet that does not continue the changelog is emptied first."""
        await self._consumer.start()
        try:
            self._consumer.assign(self._tps)
            first = await self._consumer.beginning_offsets(self._tps)
            for tp in self._tps:
                self._begin(tp, first[tp])
            noted = flushed = now_ms()
            while True:
                try:
                    fetched = await self._consumer.getmany(timeout_ms=200, max_records=CHUNK)
                except OffsetOutOfRangeError as error:  # the log was cut off or made anew
                    first = await self._consumer.beginning_offsets(self._tps)
                    for tp in error.args[0]:
                        self._empty(tp, first[tp])
                    continue
                reached = await self._at_end()
                for tp, records in fetched.items():
                    await self._apply(tp, records, reached.get(tp.partition, self._at[tp.partition]))
                self._reached |= reached
                self._at |= reached
                if now_ms() - noted > NOTE_MS:
                    noted = now_ms()
                    await self._note(reached)
                if now_ms() - flushed > FLUSH_S * 1000:
                    flushed = now_ms()
                    for tp in self._tps:
                        await asyncio.get_running_loop().run_in_executor(self._pool, self._tablet(tp).flush)
        finally:
            await stop(self._consumer)

    def _begin(self, tp: TopicPartition, first: int) -> None:
        tablet = self._tablet(tp)
        offset, at = tablet.offset(self._topic)
        if at and (now_ms() - at > STALE_MS or offset + 1 < first):
            self._empty(tp, first)
            return
        self._go(tp, max(offset + 1, first), at or now_ms())

    def _empty(self, tp: TopicPartition, first: int) -> None:
        log.info("partition %d: does not continue its changelog, emptied", tp.partition)
        self._reached.pop(tp.partition, None)
        self._tablet(tp).wipe()
        self._go(tp, first, now_ms())

    def _go(self, tp: TopicPartition, offset: int, at: int) -> None:
        self._next[tp.partition], self._at[tp.partition] = offset, at
        self._consumer.seek(tp, offset)

    async def _at_end(self) -> dict[int, int]:
        """Partitions whose last fetch held everything that there is, all of it handed out, and when it was answered."""
        found = {}
        for tp in self._tps:
            end = self._consumer.highwater(tp)
            if end is not None and await self._consumer.position(tp) >= end:
                found[tp.partition] = self._consumer.last_poll_timestamp(tp)
        return found

    async def _apply(self, tp: TopicPartition, records: Sequence[Any], at: int) -> None:
        last = records[-1].offset
        bad = await asyncio.get_running_loop().run_in_executor(self._pool, bad_profiles, [(r.key, r.value) for r in records])
        for n, error in bad.items():
            self._rejected(records[n], error)
        await self._write(tp, {r.key: r.value for n, r in enumerate(records) if n not in bad}, last, at)
        self._next[tp.partition] = last + 1
        self._count(len(records))

    async def _write(self, tp: TopicPartition, rows: dict[bytes, bytes | None], offset: int, at: int) -> None:
        write = partial(self._tablet(tp).write, profiles=rows.items(), offsets={self._topic: offset}, now_ms=at)
        await asyncio.get_running_loop().run_in_executor(self._pool, write)

    async def _note(self, reached: dict[int, int]) -> None:
        """An idle partition is up to date too: without a note it would be taken for stale after a long silence."""
        for partition, at in reached.items():
            await self._write(TopicPartition(self._topic, partition), {}, self._next[partition] - 1, at)

    def _tablet(self, tp: TopicPartition) -> Tablet:
        tablet = self._tablets.get(tp.partition)
        assert tablet is not None  # all are open for as long as the process runs
        return tablet
