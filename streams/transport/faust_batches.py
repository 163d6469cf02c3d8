"""Record batches through Faust: one message carries what one fetch returned for one partition. The only file that knows Faust's inside.

Plumbing is paid per batch, not per record; group membership, rebalance, ack and commit stay Faust's own.
Faust 0.15.3 loses fetched messages around a rebalance in four ways (`tests/streams/transport/test_faust_defects.py`); what holds against each here:

  1. fetched while the flow is stopped: the position has moved on, nobody seeks back   -> `perform_seek` on a stopped flow
  2. fetched by the old generation, tagged with the new one: a hole in front of it     -> re-read before a hole is believed
  3. queued between `perform_seek` and `flow_control.resume`, which clears the queues  -> an ack must follow the one before it,
                                                                                         else the partition is read again from there
  4. any of these before the group's first commit: there is no offset to seek back to  -> `perform_seek` seeks to the log's start

And it may crash: it seeks on the app's thread, in the buffers of a fetcher that is at work in the consumer's                -> `_seek`
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from typing import Any

import faust
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import OffsetResetStrategy
from aiokafka.errors import IllegalStateError, NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.events import Event
from faust.tables import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from streams.core.errors import BrokerError
from streams.core.fault_points import point
from streams.transport.isolation import read_committed
from streams.transport.light_records import empty_range, light

log = logging.getLogger("currents.batches")


class RecordBatch(ConsumerMessage):
    """`value`: aiokafka records of one partition, in order; an ack covers the offsets from `first` to before `end`."""

    __slots__ = ("end", "first")
    first: int
    end: int


class BatchTopic(faust.Topic):
    """A topic whose events carry a RecordBatch, undecoded."""

    async def decode(self, message: Any, *, propagate: bool = False) -> Event:
        """Wrap the batch; records are decoded by whoever reads it."""
        return Event(self.app, None, message.value, None, message)


REREADS = 2  # the same hole again and again is real, where a fetch does not say from which offset it was read
METADATA_S = 0.2  # between questions for topics that a broker does not know yet
FETCH_WAIT_MS = 25  # without a linger. Faust's 1500 is what a record waits whose partition is not in the fetch that is under way
FETCH_BYTES = 256 << 10  # for which a broker lingers: more than comes in that time while a worker keeps up


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Always with Faust's own assignor: it tells every worker which URL has which partition."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        self._assignor = self.app.assignor
        consumer._partition_assignment_strategy = [self._assignor]
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        if self.app.linger_ms:
            consumer._fetch_max_wait_ms, consumer._fetch_min_bytes = max(1, round(self.app.linger_ms)), FETCH_BYTES
        return consumer

    async def on_start(self) -> None:
        """Fetch light records, and note when the group last heard of this worker."""
        await super().on_start()
        light(self._consumer, self.app.committed_topics)
        if self.app.committed_topics:
            read_committed(self._consumer, self.app.committed_topics)
        self._consumer._fetcher._default_reset_strategy = OffsetResetStrategy.NONE  # BatchConsumer._out_of_range decides
        coordinator = self._consumer._coordinator
        heartbeat = coordinator._do_heartbeat

        async def noted() -> bool:
            began = time.monotonic()
            known = bool(await heartbeat())
            if known:
                self.consumer.known_at = began
            return known

        coordinator._do_heartbeat = noted
        assign, client, subscription = coordinator._perform_assignment, self._consumer._client, self._consumer._subscription

        async def assigned(response: Any) -> Any:
            await topics_known(client, subscription.topics, self.app.conf.broker_rebalance_timeout / 2)
            return await assign(response)

        coordinator._perform_assignment = assigned

    def empty_range(self, tp: TP) -> tuple[int, int] | None:
        """Offsets of an assigned partition that the newest fetches passed without any record."""
        return None if self._consumer is None else empty_range(self._consumer, TopicPartition(*tp))

    def end(self, tp: TP) -> int | None:
        """The offset at which an assigned partition ends for this consumer, as of the last fetch: before an open transaction where it waits."""
        consumer, tp = self._ensure_consumer(), TopicPartition(*tp)
        stable = consumer.last_stable_offset(tp) if tp.topic in self.app.committed_topics else None
        high: int | None = consumer.highwater(tp)
        return high if stable is None or stable < 0 else stable

    async def on_thread_stop(self) -> None:
        """Without brokers neither what is asked of them nor the group's goodbye is waited for."""
        if not self.app.alone:
            await super().on_thread_stop()
        elif self._consumer is not None:
            self.method_queue._stopped_set()  # else its tasks take a cancellation for a call's, and go on
            self._consumer._closed = True
            await self._consumer._client.close()


async def topics_known(client: Any, topics: Collection[str], seconds: float) -> None:
    """Wait until an aiokafka client has heard of the partitions of all topics, so long at most: what a leader does before it hands them out.

    A broker that comes back answers before it knows its own topics. Faust's assignor leaves out those that are missing, all of them at worst, and
    nobody asks again before metadata are old.
    """
    give_up = time.monotonic() + seconds
    while not all(map(client.cluster.partitions_for_topic, topics)) and time.monotonic() < give_up:
        await client.force_metadata_update()
        await asyncio.sleep(METADATA_S)


class BatchConsumer(driver.Consumer):
    """Faust's consumer, handing out record batches. Batches of a partition are acked in order (one agent, concurrency 1)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._due: dict[TP, int] = {}  # the offset that the next fetch must begin with
        self._holes = Counter[tuple[TP, int, int]]()  # how often a fetch began with another offset than was due
        self._handled: dict[TP, int] = {}  # the offset that the next ack must begin with
        self._lost: set[TP] = set()  # partitions of which a batch went missing between fetch and ack
        self.lost_batches = 0
        self.holes_reread = 0
        self.out_of_range = 0  # how often a partition's log did not have the offset that was due
        self.known_at = 0.0  # monotonic seconds: when the group last took this worker for a member

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def create_topic(self, topic: str, partitions: int, replication: int, **_: Any) -> None:
        """Topics are made by streams.transport.topics before the app starts."""

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """The group knows this worker."""
        self.known_at = time.monotonic()
        await super().on_partitions_assigned(assigned, generation_id)

    async def commit_and_end_transactions(self) -> None:
        """On the way out. After a crash, or without brokers, nobody answers any more; what was not committed comes again."""
        if not self.app.crashed and not self.app.alone:
            await super().commit_and_end_transactions()

    async def perform_seek(self) -> None:
        """Back to the committed offsets, or to the log's start: what was fetched and not acked comes again."""
        await super().perform_seek()
        assigned = self.assignment()
        due = {tp: offset for tp in assigned if (offset := self._read_offset.get(tp))}
        fresh = [self._new_topicpartition(*tp) for tp in assigned if tp not in due]
        if fresh:
            for tp, offset in (await self.earliest_offsets(*fresh)).items():
                await self.seek(tp, offset)
                due[TP(*tp)] = offset
                self._committed_offset[TP(*tp)] = None  # also where there was one, of a topic that was deleted
        self._due, self._handled = due, dict(due)
        self._lost.clear()
        self._holes.clear()

    @staticmethod
    async def _unless_taken(seeking: Awaitable[None]) -> None:
        """Seek. Partitions that a rebalance takes away meanwhile are no error: before anybody fetches them again they are sought anew."""
        with contextlib.suppress(IllegalStateError, AssertionError):  # the latter where none is left
            await seeking

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, RecordBatch]]:
        """Fetch, and yield one batch for each partition."""
        for tp in list(self._lost):
            self._lost.discard(tp)
            if tp in self._handled:
                self._due[tp] = self._handled[tp]
                await self._unless_taken(self.seek(tp, self._handled[tp]))
        generation = self.app.consumer_generation_id
        try:
            records, active = await self._wait_next_records(timeout)
        except NoOffsetForPartitionError:  # of a partition that is not sought yet
            return
        except OffsetOutOfRangeError as error:
            for tp, offset in error.args[0].items():
                await self._unless_taken(self._out_of_range(TP(*tp), offset))
            return
        if records is None or self.should_stop:
            return
        if self.flow_active and self.app.consumer_generation_id == generation:
            self._pass_empty()
        for tp, fetched in records.items():
            if active is not None and tp not in active and tp not in self._buffered_partitions:
                continue
            if not self.flow_active or self.app.consumer_generation_id != generation:
                await self._unless_taken(self.perform_seek())
                return
            batch = await self._batch(tp, fetched, generation)
            if batch is not None:
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                yield tp, batch

    async def _batch(self, tp: TP, records: list[Any], generation: int) -> RecordBatch | None:
        due, end = self._due.get(tp), getattr(records, "end", records[-1].offset + 1)
        if due is not None:
            first = getattr(records, "first", None)
            records = [r for r in records if r.offset >= due]
            if not records:
                return None
            hole = (due, records[0].offset if first is None else first)
            if hole[1] > due and self._holes[tp, *hole] < REREADS:
                log.warning("%s: fetched from offset %d where %d was due: reading again", tp, hole[1], due)
                self.holes_reread += 1
                self._holes[tp, *hole] += 1
                await self._unless_taken(self.seek(tp, due))
                return None
            self._holes.pop((tp, *hole), None)
        last = records[-1]
        batch = RecordBatch(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000, 0, None, None, records, None, 0, 0, tp, generation_id=generation
        )
        batch.first, batch.end = records[0].offset if due is None else due, end
        self._due[tp] = end
        return batch

    async def _out_of_range(self, tp: TP, offset: int) -> None:
        """Go on where the log has records, if it has none at the offset that was due; raises BrokerError if that is not wanted.

        The log was truncated, made anew or restored; or its retention has overtaken the group, and then it is read from where it begins.
        """
        due = self._due.get(tp)
        if due != offset:
            if due is not None:
                await self.seek(tp, due)
            return
        key = self._new_topicpartition(*tp)
        first, end = (await self.earliest_offsets(key))[key], (await self.highwaters(key))[key]
        self.out_of_range += 1
        told = f"{tp.topic}/{tp.partition}: its log has offsets {first} to {end}, but the group has come to {offset}"
        if self.app.out_of_range == "stop":
            raise BrokerError(f'{told}; kafka.out_of_range is "stop": reset the offsets of group {self.app.conf.id}, or change the setting')
        begin = end if self.app.out_of_range == "latest" and offset > end else first
        log.warning("%s: going on from %d%s", told, begin, f"; {first - offset} offsets were deleted before they were read" if offset < first else "")
        for message in list(self._unacked_messages):
            if message.tp == tp:  # its offsets are of the log that was
                message.acked = True
                self._unacked_messages.discard(message)
        await self.seek(tp, begin)
        self._due[tp] = self._handled[tp] = begin
        self._committed_offset[tp] = None
        self._acked[tp][:] = [begin - 1]

    def _pass_empty(self) -> None:
        """Where everything is acked, what the newest fetches passed without any record is done too: markers and aborted records of transactions."""
        for tp, due in self._due.items():
            empty = self._thread.empty_range(tp)
            if empty is not None and self._handled.get(tp) == due and empty[0] <= due < empty[1]:
                self._due[tp] = self._handled[tp] = empty[1]
                self._acked[tp][:] = [empty[1] - 1]

    async def _seek(self, partition: TP, offset: int) -> None:
        await self._thread.call_thread(self._thread._ensure_consumer().seek, partition, offset)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        point("before-commit")
        return bool(await super()._commit(offsets))

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Batches know their first offset and their end; gaps inside (compaction, transactions) need no bookkeeping."""

    def ack(self, message: Any) -> bool:
        """Everything before the batch's end is done, if everything before the batch is."""
        if message.acked:
            return False
        tp = message.tp
        message.acked = True
        self._unacked_messages.discard(message)
        if message.first > self._handled.get(tp, message.first):
            log.warning("%s: a batch went missing between offsets %d and %d: reading again", tp, self._handled[tp], message.first)
            self.lost_batches += 1
            self._lost.add(tp)
            return False
        self._handled[tp] = message.end
        self._acked[tp][:] = [message.end - 1]
        self._n_acked += len(message.value)
        return True

    def _new_offset(self, tp: TP) -> int | None:
        acked = self._acked[tp]
        return acked.pop() + 1 if acked else None


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with record batches."""

    Consumer = BatchConsumer


class NoTables(TableManager):
    """Faust's manager of its own tables, of which there are none: without the second that it waits for them when it starts."""

    async def on_start(self) -> None:
        """Let the app subscribe at once."""
        await self._update_channels()
        await self.recovery.start()


class BatchApp(faust.App):
    """A Faust app whose agents read record batches."""

    linger_ms = 0.0
    """For how long a broker may hold a fetch, so that more comes at once."""
    committed_topics: Collection[str] = ()
    """Topics whose transactions are waited for, and left out where they are aborted."""
    out_of_range = "earliest"
    """Where to go on if a log does not have the offset that the group has come to: "earliest", "latest" or "stop"."""
    alone = False
    """No broker answers: on the way out nobody is waited for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, TableManager=NoTables, **options)
        self._made_at = time.monotonic()

    def leave_alone(self) -> None:
        """The brokers are away: `stop` ends everything that would wait for them."""
        self.alone = True
        sender = self.producer._producer._sender if self.producer._producer is not None else None
        if sender is not None and sender.sender_task is not None:
            sender.sender_task.cancel()

    async def _producer_flush(self, logger: Any) -> None:
        if not self.alone:
            await super()._producer_flush(logger)

    def _new_transport(self) -> Any:
        return BatchTransport(self.conf.broker_consumer, self)

    def batch_topic(self, name: str) -> BatchTopic:
        """A topic to hand to `app.agent`."""
        return BatchTopic(self, topics=[name], key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    def owners(self, topic: str) -> Mapping[int, str]:
        """Partition -> URL of the worker that has it, as of the last assignment."""
        distribution = self.assignor.external_topic_distribution
        return {p: url for url, tps in distribution.items() for p in tps.get(topic, ())}

    def is_member(self) -> bool:
        """Whether the group cannot have given this worker up yet. After it stood still its partitions may be another's, before it hears of that."""
        return bool(time.monotonic() - self.consumer.known_at < 0.8 * self.conf.broker_session_timeout)

    def brokers_silent_s(self) -> float:
        """Seconds since the group last took this worker for a member, or since it has waited for that."""
        return float(time.monotonic() - (self.consumer.known_at or self._made_at))

    def brokers_away(self) -> bool:
        """Whether the brokers have been silent for so long that the group has given this worker up."""
        return bool(self.brokers_silent_s() > self.conf.broker_session_timeout)

    @property
    def lost_batches(self) -> int:
        """Batches that went missing between fetch and ack, and were read again."""
        return int(self.consumer.lost_batches)

    async def ends(self) -> dict[TP, int]:
        """The offsets at which the assigned partitions end, as the brokers say now."""
        return dict(await self.consumer.highwaters(*self.consumer.assignment()))

    def reached(self, ends: Mapping[TP, int]) -> bool:
        """Whether everything before these offsets is acked."""
        return all(self.consumer._handled.get(tp, 0) >= end for tp, end in ends.items())

    def lag(self, tp: TP) -> int | None:
        """Offsets of an assigned partition that are to come or not acked yet, as far as the last fetch knows; None before the first."""
        end, done = self.consumer._thread.end(tp), self.consumer._handled.get(tp)
        return None if end is None or done is None else max(0, end - done)
