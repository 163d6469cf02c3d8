"""Agents: a platform's records → unified events, and a platform's items → item vectors. What cannot be used becomes a dead letter."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from encoder.towers import Tower
from schemas.deadletters import DeadLetter, encode_dead_letter, letter_of
from schemas.events import encode_event
from schemas.items import Item
from schemas.mapping import Mapper, Metadata, Rejected
from schemas.metadata import NOTHING
from streams.core.clock import now_ms
from streams.core.settings import Settings
from streams.ingest.schema_registry import SchemaRegistry, ids_of, registry_of
from streams.monitoring.drift import field_bins
from streams.monitoring.metrics import Metrics
from streams.state.item_store import item_rows
from streams.transport.faust_batches import RecordBatch
from streams.transport.sender import Row, Sender, by_partition

OLDEST_MS = 3_600_000
LOOKED_AT = 64  # events of a batch whose fields are looked at, up to twice as many: their distribution is watched
Seen = Callable[[str, int, Sequence[str], Sequence[tuple[int, int]]], None]
"""Takes a platform, how many of its records were used, the reasons why others were not, and what some events look like."""


@dataclass
class Mapped:
    """What one record batch became, before anything is sent."""

    rows: list[Row] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    filtered: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Optional fields that could not be read, by reason."""
    field_bins: list[tuple[int, int]] = field(default_factory=list)
    """Of some events, as streams.monitoring.drift watches them."""


def map_events(records: Sequence[Any], mapper: Mapper, platform: str) -> Mapped:
    """Records of `events.<platform>` -> rows of `currents.events`."""
    out, now, step, before = Mapped(), now_ms(), max(1, len(records) // LOOKED_AT), mapper.left_out.copy()
    for n, r in enumerate(records):
        events = mapper.events(r.value, r.topic, r.partition, r.offset, now, metadata_of(r) if mapper.reads_metadata else NOTHING)
        if isinstance(events, Rejected):
            out.dead.append(letter_of(r, events.reason, events.detail, platform, now))
            continue
        out.filtered += not events
        at = row_time(r.timestamp, now)
        out.rows += [(e.user_id.encode(), encode_event(e), at) for e in events]
        if events and not n % step:
            out.field_bins.append(field_bins(events[0]))
    out.left_out = mapper.left_out - before
    return out


def metadata_of(record: Any) -> Metadata:
    """What a record says beside its value."""
    return Metadata(record.timestamp, record.key, getattr(record, "headers", None) or ())


def row_time(record_ms: int, now: int) -> int:
    """The time of a row: that of the record that it came from, from which the age of a profile counts.

    Unless it is old or ahead: by its time the brokers would expire the row before it was read, or refuse it.
    """
    return min(max(record_ms, now - OLDEST_MS), now)


def map_items(records: Sequence[Any], mapper: Mapper, platform: str, tower: Tower) -> Mapped:
    """Records of `items.<platform>` -> rows of `currents.item-vectors`. A null value, or a mapping's `deleted`, takes an item away."""
    out, items, now = Mapped(), list[Item](), now_ms()
    rows: list[Row | None] = []  # None: the next of `items`. Order counts: the last word on an item holds
    for r in records:
        found = mapper.items(r.value, metadata_of(r))
        if isinstance(found, Rejected):
            out.dead.append(letter_of(r, found.reason, found.detail, platform, now))
            continue
        for one in found:
            if isinstance(one, Item):
                items.append(one)
                rows.append(None)
            else:
                rows.append((one.item.encode(), None, now))
    made = iter(item_rows(items, tower, now) if items else ())
    out.rows = [row or next(made) for row in rows]
    return out


@dataclass
class _Line:
    """One topic of a platform: its rows are mapped, and then sent, by one batch at a time."""

    mapping: asyncio.Lock = field(default_factory=asyncio.Lock)
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)


class Normaliser:
    """Everything between a record batch of a platform and its acknowledged rows."""

    def __init__(
        self,
        settings: Settings,
        tower: Tower,
        sender: Sender,
        metrics: Metrics,
        pool: Executor,
        seen: Seen = lambda platform, good, dead, field_bins: None,
    ) -> None:
        self._partitions = settings.worker.partitions
        self._events, self._vectors, self._dead = settings.topic("events"), settings.topic("item-vectors"), settings.topic("dead-letters")
        self._registry = registry_of(settings)
        self._mappers = mappers(settings, self._registry)
        self._tower, self._sender, self._metrics, self._pool = tower, sender, metrics, pool
        self._seen = seen
        self._lines: dict[tuple[str, str], _Line] = defaultdict(_Line)

    async def events(self, platform: str, batches: Sequence[RecordBatch]) -> None:
        """Map and send; returns when every row is acknowledged."""
        records = [r for b in batches for r in b.value]
        if self._registry is not None:
            await self._registry.fetch(ids_of(records))
        mapped = await self._through("events", platform, self._events, map_events, records, self._mappers[platform], platform)
        m = self._metrics
        m.received.labels(platform).inc(len(records))
        m.events.labels(platform).inc(len(mapped.rows))
        m.filtered.labels(platform).inc(mapped.filtered)
        for reason, n in mapped.left_out.items():
            m.left_out.labels(platform, reason).inc(n)
        self._seen(platform, len(records) - len(mapped.dead), [d.reason for d in mapped.dead], mapped.field_bins)

    async def items(self, platform: str, batches: Sequence[RecordBatch]) -> None:
        """Embed and send; returns when every row is acknowledged."""
        records = [r for b in batches for r in b.value]
        if self._registry is not None:
            await self._registry.fetch(ids_of(records))
        mapped = await self._through("items", platform, self._vectors, map_items, records, self._mappers[platform], platform, self._tower)
        self._metrics.items.labels(platform).inc(len(mapped.rows))

    async def _through(self, kind: str, platform: str, topic: str, function: Any, *arguments: Any) -> Mapped:
        """Map, then send. While rows are on their way the next ones are mapped; they are sent in the order of the calls."""
        line = self._lines[kind, platform]
        async with line.mapping:
            mapped: Mapped = await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
            await line.sending.acquire()
        try:
            await self._send(topic, mapped)
        finally:
            line.sending.release()
        return mapped

    async def _send(self, topic: str, mapped: Mapped) -> None:
        letters: list[Row] = [(d.key, encode_dead_letter(d), d.at) for d in mapped.dead]
        await self._sender.send_all({topic: by_partition(mapped.rows, self._partitions), self._dead: by_partition(letters, self._partitions)})
        for d in mapped.dead:
            self._metrics.dead.labels(d.platform, d.reason).inc()


def mappers(settings: Settings, schemas: SchemaRegistry | None = None) -> dict[str, Mapper]:
    """A compiled mapper for each platform of the settings. `schemas`: where those of framed values come from."""
    earliest_ms = settings.ingest.earliest_ms()
    skew_ms = round(settings.ingest.max_skew_s * 1000)
    return {p.name: Mapper(p, skew_ms, earliest_ms, settings.ingest.max_bytes, schemas) for p in settings.platforms}
