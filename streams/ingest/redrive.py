"""Dead letters again, after a mapping was mended: what can be used by now enters once, however often and however it was interrupted.

`<prefix>.redriven` remembers it. Its records:

    key                                    value
    <topic>/<partition>@<offset>@<ms>      ""      the letter of this record of a platform was sent
    "run" (on partition 0)                 JSON    {"from": [offset, …]}: a run began; ends of the unified topic's partitions at that time
                                                   {"ended": true}: it came to its end

A letter is marked when the brokers have its events. A run that was killed in between has sent some that are not marked: the next run looks for
them in the unified topic, from where it ended when that run began, and sends the others only.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.deadletters import DeadLetter, decode_dead_letter
from schemas.events import decode_event, encode_event
from schemas.mapping import Mapper
from schemas.mapping import Rejected as Refused
from schemas.rows import check_key
from streams.core.clock import now_ms
from streams.core.errors import BrokerError
from streams.core.settings import Settings
from streams.ingest.normalise import mappers, row_time
from streams.ingest.schema_registry import ids_of, registry_of
from streams.monitoring.rejected import Rejected
from streams.transport.broker_settings import for_aiokafka
from streams.transport.reading import read_to_end, read_topic, reader
from streams.transport.sender import HeadedRow, Row, Sender, by_partition
from streams.transport.topics import DEAD_LETTER_BYTES, asking, create, identity

LOT = 500  # letters that are sent, and then marked, at once
RUN = b"run"
Source = tuple[str, int, int]
"""Topic, partition, offset of a platform's record."""


@dataclass
class Mended:
    """What some letters become, before anything is sent."""

    events: list[Row] = field(default_factory=list)
    items: dict[str, dict[int, list[HeadedRow]]] = field(default_factory=dict)
    """By topic and partition: an item goes where it came from."""
    marks: list[Row] = field(default_factory=list)
    still: Counter[str] = field(default_factory=Counter)


def mark_of(letter: DeadLetter) -> bytes:
    """What tells a dead record from every other, also from one of a topic that was made anew."""
    return f"{letter.topic}/{letter.partition}@{letter.offset}@{letter.timestamp}".encode()


def mend(letters: Iterable[DeadLetter], by_name: Mapping[str, Mapper], items: frozenset[str], sent: set[tuple[Source, int]], at_ms: int) -> Mended:
    """Letters -> what the mappings as they are now make of them. `items`: topics of items; `sent`: events that are in the unified topic already."""
    out = Mended()
    for letter in letters:
        mapper = by_name.get(letter.platform)
        if mapper is None:
            out.still[letter.reason] += 1
            continue
        is_item = letter.topic in items
        found: Sequence[Any] | Refused = (
            mapper.items(letter.value, letter.metadata)
            if is_item
            else mapper.events(letter.value, letter.topic, letter.partition, letter.offset, letter.at, letter.metadata)
        )
        if isinstance(found, Refused):
            out.still[found.reason] += 1
            continue
        at, source = row_time(letter.timestamp, at_ms), (letter.topic, letter.partition, letter.offset)
        if not is_item:
            out.events += [(e.user_id.encode(), encode_event(e), at) for e in found if (source, e.event_id) not in sent]
        else:
            out.items.setdefault(letter.topic, {}).setdefault(letter.partition, []).append((letter.key, letter.value, at, letter.headers))
        out.marks.append((mark_of(letter), b"", at_ms))
    return out


async def redrive(settings: Settings, everything: bool, dry_run: bool, progress: Callable[[int], None]) -> dict[str, Any]:
    """Send what is mended; `everything`: also what was sent before. Returns counts. One run at a time. Raises BrokerError; then run it again."""
    try:
        return await _Run(settings, everything, progress).through(dry_run)
    except KafkaError as error:
        raise BrokerError(f"kafka.bootstrap = {settings.kafka.bootstrap!r}: {error}; what was sent is remembered, run it again") from None


def open_topics(settings: Settings) -> None:
    """Make sure that there are letters, and a place to remember them. Raises BrokerError."""
    with asking(settings.kafka, 2) as client:
        identity(client, settings.topic("dead-letters"))
        create(client, settings)


async def marks(settings: Settings) -> tuple[set[bytes], list[int] | None]:
    """Letters that were sent, and where in the unified topic a run that did not come to its end began; None if the last one did."""
    records, rejected = await read_topic(settings.kafka, settings.topic("redriven"), settings.worker.partitions), Rejected()
    done, begun = set[bytes](), None
    for record in records:
        try:
            if record.key == RUN:
                begun = _begun(record.value, settings.worker.partitions)
            else:
                done.add(check_key(record.key).encode())
        except ValueError as error:
            rejected(record, error)
    return done, begun


def _begun(value: bytes | None, partitions: int) -> list[int] | None:
    """Where a run began, of its record; None of one that says that it ended. Raises ValueError on other bytes."""
    row = orjson.loads(value or b"")
    if row == {"ended": True}:
        return None
    offsets = row.get("from") if isinstance(row, dict) else None
    if not isinstance(offsets, list) or len(offsets) != partitions or not all(isinstance(n, int) and n >= 0 for n in offsets):
        raise ValueError(f"want ended, or from with {partitions} offsets")
    return offsets


async def letters_of(settings: Settings) -> AsyncIterator[list[DeadLetter]]:
    """All dead letters there are, some at a time."""
    consumer, rejected = reader(settings.kafka), Rejected()
    await consumer.start()
    try:
        tps = [TopicPartition(settings.topic("dead-letters"), p) for p in range(settings.worker.partitions)]
        async for _, records in read_to_end(consumer, await consumer.beginning_offsets(tps)):
            for start in range(0, len(records), LOT):
                yield [letter for r in records[start : start + LOT] if (letter := _decoded(r, rejected)) is not None]
    finally:
        await consumer.stop()


def _decoded(record: Any, rejected: Rejected) -> DeadLetter | None:
    try:
        return decode_dead_letter(record.value)
    except ValueError as error:
        rejected(record, error)
        return None


class _Run:
    def __init__(self, settings: Settings, everything: bool, progress: Callable[[int], None]) -> None:
        self._settings, self._progress = settings, progress
        self._registry = registry_of(settings)
        self._by_name = mappers(settings, self._registry)
        self._items = frozenset(p.items_topic for p in settings.platforms if p.items_topic)
        self._everything = everything

    async def through(self, dry_run: bool) -> dict[str, Any]:
        s = self._settings
        done, unfinished = await marks(s)
        sent = set[tuple[Source, int]]() if unfinished is None else await self._sent(unfinished, done)
        if self._everything:
            done.clear()
        producer = AIOKafkaProducer(**for_aiokafka(s.kafka), acks="all", max_batch_size=512 << 10, max_request_size=DEAD_LETTER_BYTES)
        await producer.start()
        sender = Sender(lambda: producer)
        mended, events, seen, still = 0, 0, 0, Counter[str]()
        try:
            if not dry_run:
                await self._say(sender, {"from": unfinished or await self._ends()})
            async for letters in letters_of(s):
                fresh = {(mark_of(d), d.platform): d for d in letters if mark_of(d) not in done}
                for key in [key for key, d in fresh.items() if d.topic in self._items and d.partition not in await producer.partitions_for(d.topic)]:
                    del fresh[key]  # of a topic that was made anew with fewer, or forged
                    still["no-partition"] += 1
                if self._registry is not None:
                    await self._registry.fetch(ids_of(fresh.values()))
                lot = mend(fresh.values(), self._by_name, self._items, sent, now_ms())
                if not dry_run:
                    await sender.send_all({s.topic("events"): by_partition(lot.events, s.worker.partitions), **lot.items})
                    await sender.send(s.topic("redriven"), by_partition(lot.marks, s.worker.partitions))
                done |= {key for key, _, _ in lot.marks if key}
                mended, events, seen, still = mended + len(lot.marks), events + len(lot.events), seen + len(letters), still + lot.still
                self._progress(seen)
            if not dry_run:
                await self._say(sender, {"ended": True})
        finally:
            await producer.stop()
        return {"mended": mended, "events": events, "still_rejected": dict(still), "dry_run": dry_run}

    async def _say(self, sender: Sender, what: dict[str, Any]) -> None:
        await sender.send(self._settings.topic("redriven"), {0: [(RUN, orjson.dumps(what), now_ms())]})

    def _unified(self) -> list[TopicPartition]:
        return [TopicPartition(self._settings.topic("events"), p) for p in range(self._settings.worker.partitions)]

    async def _ends(self) -> list[int]:
        consumer = reader(self._settings.kafka)
        await consumer.start()
        try:
            ends = await consumer.end_offsets(self._unified())
            return [ends[tp] for tp in self._unified()]
        finally:
            await consumer.stop()

    async def _sent(self, begun: list[int], done: set[bytes]) -> set[tuple[Source, int]]:
        """Events of letters without a mark that a run sent before it was killed; it began at these offsets of the unified topic."""
        waiting = {(d.topic, d.partition, d.offset) async for lot in letters_of(self._settings) for d in lot if mark_of(d) not in done}
        found, consumer = set[tuple[Source, int]](), reader(self._settings.kafka)
        await consumer.start()
        try:
            first = await consumer.beginning_offsets(self._unified())
            start = {tp: max(first[tp], offset) for tp, offset in zip(self._unified(), begun, strict=True)}
            async for _, records in read_to_end(consumer, start):
                for record in records:
                    try:
                        e = decode_event(record.value or b"")
                    except ValueError:
                        continue
                    if (source := (e.topic, e.partition, e.offset)) in waiting:
                        found.add((source, e.event_id))
        finally:
            await consumer.stop()
        return found
