"""Writes slices of the unified topic, or of its archive, to files for training."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.archive import Archive, ArchiveError, newest, spans
from schemas.events import UNIFIED_EVENTS, encode_event
from schemas.items import UNIFIED_ITEMS, encode_item_vector
from schemas.rows import check_event, check_item
from streams.core.cancel import stop
from streams.core.errors import BrokerError, InputError
from streams.core.settings import Settings
from streams.monitoring.rejected import Rejected
from streams.transport.clients import extent
from streams.transport.reading import CHUNK, reader

log = logging.getLogger("currents.retrain")
Spans = dict[int, tuple[int, int]]
"""Partition -> (first offset, offset after the last)."""


@dataclass(frozen=True)
class Slice:
    """Owns the offsets of an immutable part of the unified topic, or of its archive."""

    source: Literal["topic", "archive"]
    events: Spans
    items: Spans

    @property
    def count(self) -> int:
        """Number of event offsets: an upper bound of the number of events."""
        return sum(end - begin for begin, end in self.events.values())

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object with partitions as keys."""
        return {"source": self.source} | {k: {str(p): list(s) for p, s in sorted(getattr(self, k).items())} for k in ("events", "items")}


def slice_of(row: dict[str, Any]) -> Slice:
    """Inverse of `Slice.as_json`."""
    events, items = ({int(p): (int(a), int(b)) for p, (a, b) in row[k].items()} for k in ("events", "items"))
    return Slice(row["source"], events, items)


def newest_slice(settings: Settings, source: Literal["topic", "archive"], most: int) -> Slice:
    """Return the slice of all items and the newest `most` event offsets, evenly over the partitions. Raises BrokerError, ArchiveError."""
    if source == "topic":
        events, items = _spans(settings, "events"), _spans(settings, "item-vectors")
    else:
        archive = Archive(settings.archive.url)
        if archive.about() is None:
            raise ArchiveError(f"archive.url = {settings.archive.url!r}: no archive there; run `currents archive`")
        events, items = spans(archive.batches("events")), spans(archive.batches("items"))
    each = -(-most // max(len(events), 1))
    return Slice(source, {p: (max(a, b - each), b) for p, (a, b) in events.items()}, items)


def write_slice(settings: Settings, what: Slice, folder: Path) -> None:
    """Write a slice's events, and the newest vector of every item, in training's file formats. Raises BrokerError, ArchiveError."""
    if what.source == "archive":
        archive = Archive(settings.archive.url)
        _write(folder / UNIFIED_EVENTS, (encode_event(e) for e in archive.events(what.events)))
        _write(folder / UNIFIED_ITEMS, map(encode_item_vector, newest(archive.items(what.items))))
        return
    _write(folder / UNIFIED_EVENTS, (value for _, value in _good(_values(settings, "events", what.events), check_event) if value is not None))
    _write(folder / UNIFIED_ITEMS, newest(_good(_values(settings, "item-vectors", what.items), check_item)))


def write_topic(settings: Settings, data: str, folder: Path) -> None:
    """Write events of the unified topic, and all items. `data`: `topic`, or `topic:FROM-TO` with offsets of each partition. Raises InputError."""
    low, high = 0, None
    _, _, span = data.partition(":")
    if span:
        try:
            begin, end = span.split("-")
            low, high = int(begin or 0), int(end) if end else None
        except ValueError:
            raise InputError(f"{data}: want topic or topic:FROM-TO with whole numbers") from None
    events = {p: (max(low, a), b if high is None else min(high, b)) for p, (a, b) in _spans(settings, "events").items()}
    write_slice(settings, Slice("topic", events, _spans(settings, "item-vectors")), folder)


def _spans(settings: Settings, topic: str) -> Spans:
    return {tp.partition: span for tp, span in extent(settings, [settings.topic(topic)]).items()}


def _good(records: Iterable[Any], check: Callable[[bytes | None, bytes | None], object]) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Yield keys and values of the usable records."""
    rejected = Rejected()
    for record in records:
        try:
            check(record.key, record.value)
        except ValueError as error:
            rejected(record, error)
            continue
        yield record.key, record.value
    if rejected.total:
        log.warning("%d records left out that cannot be used", rejected.total)


def _values(settings: Settings, topic: str, spans: Spans) -> Iterator[Any]:
    """Yield records, ordered by partition and offset. Raises BrokerError."""
    stream = _chunks(settings, settings.topic(topic), spans)

    async def following() -> list[Any]:
        return await anext(stream, [])

    with asyncio.Runner() as loop:
        try:
            while chunk := loop.run(following()):
                yield from chunk
        finally:
            loop.run(stream.aclose())


async def _chunks(settings: Settings, topic: str, spans: Spans) -> AsyncGenerator[list[Any], None]:
    """As `_values`, in non-empty chunks."""
    client = reader(settings.kafka)
    try:
        await client.start()
        for partition, (begin, end) in sorted(spans.items()):  # one partition at a time, which keeps the order
            if begin >= end:
                continue
            tp = TopicPartition(topic, partition)
            client.assign([tp])
            client.seek(tp, begin)
            while await client.position(tp) < end:
                for records in (await client.getmany(tp, timeout_ms=1000, max_records=CHUNK)).values():
                    if chunk := [r for r in records if r.offset < end]:
                        yield chunk
    except KafkaError as error:
        raise BrokerError(f"kafka.bootstrap = {settings.kafka.bootstrap!r}: {error}") from None
    finally:
        await stop(client)


def _write(path: Path, values: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(values)
