"""`currents archive`: the unified topic, events and items, to Parquet. schemas/archive.py says how it lies there, and why every record is there once.

A batch: 1 its files are written, each under a temporary name and then renamed, 2 then the JSON that names them. What a process that died leaves is
not named by any batch; offsets go on after the highest that is.
"""

import json
import logging
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import TopicPartition

from schemas.archive import (
    ABOUT,
    BATCHES,
    FORMAT,
    KINDS,
    Archive,
    ArchiveError,
    Batch,
    Kind,
    current,
    encode_batch,
    ends,
    event_row,
    folder_of,
    groups,
    item_row,
    schema,
)  # fmt: skip
from schemas.rows import check_event, check_item, check_key
from streams.core.process import claim
from streams.core.settings import Settings
from streams.monitoring.rejected import Rejected
from streams.transport.clients import consumer, extent
from streams.transport.topics import asking, identity

log = logging.getLogger("currents.archive")
TOPICS: dict[Kind, str] = {"events": "events", "items": "item-vectors"}
FEWEST = 8  # batches that a merge is worth
POLL_MS = 500
UNFIT = (ValueError, TypeError, OverflowError, OSError)
"""What pyarrow and the calendar raise for values that they cannot hold."""


class Writer:
    """Writes and merges batches. Raises ArchiveError when the store refuses."""

    def __init__(self, archive: Archive, names: dict[int, str]) -> None:
        self._archive, self._names = archive, names

    def put(self, name: str, data: bytes) -> None:
        """A file, whole or not at all."""
        fs, path = self._archive.fs, self._archive.path(name)
        folder, _, last = path.rpartition("/")
        stage = f"{folder}/.{last}.part"
        try:
            fs.makedirs(folder, exist_ok=True)
            with fs.open(stage, "wb") as file:
                file.write(data)
                if "file" in fs.protocol:  # elsewhere closing is what makes it last
                    file.flush()
                    os.fsync(file.fileno())
            fs.mv(stage, path)
        except OSError as error:
            raise ArchiveError(f"archive.url = {self._archive.url!r}: cannot be written: {error}") from None

    def tables(self, kind: Kind, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Rows by the folder where they belong: folder -> pyarrow table."""
        import pyarrow as pa

        parts = defaultdict[str, list[dict[str, Any]]](list)
        for row in rows:
            parts[self._folder(kind, row)].append(row)
        return {folder: pa.Table.from_pylist(found, schema(kind)) for folder, found in parts.items()}

    def _folder(self, kind: Kind, row: dict[str, Any]) -> str:
        if kind == "events":
            return folder_of(kind, row["ts_ms"], self._names.get(row["platform_code"], str(row["platform_code"])))
        return folder_of(kind, row.get("at_ms") or row["unified_at_ms"], row["item"].partition(":")[0])

    def write(self, kind: Kind, partition: int, first: int, last: int, parts: Mapping[str, Sequence[Any]]) -> Batch:
        """A partition's offsets `first` to `last` as a batch; parts: folder -> tables, in the order of offsets."""
        import pyarrow as pa
        from pyarrow import parquet

        name, files = Batch(partition, first, last, {}).name, dict[str, int]()
        for folder, tables in parts.items():
            whole, sink = pa.concat_tables(tables), pa.BufferOutputStream()
            parquet.write_table(whole, sink, compression="zstd")
            self.put(f"{folder}/{name}.parquet", sink.getvalue().to_pybytes())
            files[f"{folder}/{name}.parquet"] = len(whole)
        batch = Batch(partition, first, last, files)
        self.put(f"{BATCHES}/{kind}/{name}.json", encode_batch(batch))
        return batch

    def merge(self, kind: Kind, target: int) -> int:
        """Merge small batches up to `target` rows, and remove what is inside a greater one; returns how many batches were merged."""
        merged = 0
        for run in groups(current(self._archive.batches(kind)), target, FEWEST):
            parts = defaultdict[str, list[Any]](list)
            for batch, begin in run:
                for folder, table in self._archive.tables(batch, kind, begin).items():
                    parts[folder].append(table)
            self.write(kind, run[0][0].partition, run[0][0].first, run[-1][0].last, parts)
            merged += len(run)
        self.sweep(kind)
        return merged

    def sweep(self, kind: Kind) -> None:
        """Remove leftovers: batches inside greater ones, and files of offsets that are archived which no batch names."""
        archive, every = self._archive, self._archive.batches(kind)
        kept = [batch for batch, _ in current(every)]
        names, covered = {name for b in kept for name in b.files}, ends(kept)
        for batch in every:
            if batch not in kept:
                archive.fs.rm_file(archive.path(f"{BATCHES}/{kind}/{batch.name}.json"))
        for path in archive.fs.find(archive.path(kind)):
            name = path.removeprefix(archive.root).lstrip("/")
            stem = name.rpartition("/")[2].lstrip(".").split(".")[0].split("-")
            if name not in names and len(stem) == 3 and int(stem[2]) < covered.get(int(stem[0]), 0):
                archive.fs.rm_file(path)


@dataclass
class Waiting:
    """What of a partition is not written yet; as Arrow, a tenth of what it takes as Python's objects."""

    rows: int = 0
    last: int = -1
    """Offset of the last record."""
    since: float = field(default_factory=time.monotonic)
    parts: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Folder -> tables."""


class Archiver:
    """Follows the topics into an archive."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._s = settings, settings.archive
        self._archive = Archive(self._s.url)
        self._writer = Writer(self._archive, {p.code: p.name for p in settings.platforms})
        self._kinds = {settings.topic(topic): kind for kind, topic in TOPICS.items()}
        self._next, self._waiting = dict[TopicPartition, int](), dict[TopicPartition, Waiting]()
        self.rejected = Rejected()
        self.archived = 0

    def claim(self) -> None:
        """Make the archive if there is none, or make sure that it is of these topics. Raises ArchiveError, BrokerError."""
        with asking(self._settings.kafka, 2) as client:
            found = {kind: identity(client, topic) for topic, kind in self._kinds.items()}
        about = self._archive.about()
        if about is None:
            self._writer.put(ABOUT, json.dumps({"format": FORMAT, "topics": found}, indent=1).encode())
            return
        for kind in KINDS:
            of, now = about["topics"][kind], found[kind]
            if (of["topic"], of["topic_id"]) != (now["topic"], now["topic_id"]):
                raise ArchiveError(
                    f"archive.url = {self._s.url!r}: is of topic {of['topic']} ({of['topic_id']}), this one is {now['topic']} ({now['topic_id']}): "
                    "made anew, or another cluster's; take another folder"
                )

    def run(self, stopped: Callable[[], bool], once: bool) -> int:
        """Until `stopped`, or `once`: until the present end; returns how many records were archived."""
        for kind in KINDS:
            self._writer.sweep(kind)
        client = consumer(self._settings)
        try:
            goal = self._seek(client)
            merged = time.monotonic()
            while not stopped():
                for tp, records in client.poll(POLL_MS, max_records=5000).items():
                    self._take(tp, records)
                for tp, waiting in list(self._waiting.items()):
                    if waiting.rows >= self._s.batch_records or time.monotonic() - waiting.since >= self._s.flush_s:
                        self._flush(tp)
                if once and all(client.position(tp) >= end for tp, end in goal.items()):
                    break
                if time.monotonic() - merged > self._s.merge_s:
                    merged = time.monotonic()
                    self._merge()
            for tp in list(self._waiting):
                self._flush(tp)
            if once:
                self._merge()
        finally:
            client.close()
        return self.archived

    def _seek(self, client: Any) -> dict[TopicPartition, int]:
        there = extent(self._settings, self._kinds)
        client.assign(list(there))
        done = {kind: ends(self._archive.batches(kind)) for kind in KINDS}
        for tp, (first, end) in there.items():
            at = done[self._kinds[tp.topic]].get(tp.partition, 0)
            if at > end:
                raise ArchiveError(f"archive.url = {self._s.url!r}: has {tp.topic}/{tp.partition} up to offset {at}, the topic ends at {end}")
            if at and at < first:
                log.warning("%s/%d: offsets %d to %d were deleted before they were archived", tp.topic, tp.partition, at, first - 1)
            self._next[tp] = max(at, first)
            client.seek(tp, self._next[tp])
        return {tp: end for tp, (_, end) in there.items()}

    def _take(self, tp: TopicPartition, records: Sequence[Any]) -> None:
        kind = self._kinds[tp.topic]
        good = [(r, row) for r in records if (row := self._row(kind, tp, r)) is not None]
        try:
            tables = self._writer.tables(kind, [row for _, row in good])
        except UNFIT:
            good = [(r, row) for r, row in good if self._fits(kind, r, row)]
            tables = self._writer.tables(kind, [row for _, row in good])
        waiting = self._waiting.setdefault(tp, Waiting())
        for folder, table in tables.items():
            waiting.parts[folder].append(table)
        waiting.rows, waiting.last = waiting.rows + len(good), records[-1].offset

    def _row(self, kind: Kind, tp: TopicPartition, record: Any) -> dict[str, Any] | None:
        """A record as the archive has it; None for one that cannot be used."""
        where = tp.partition, record.offset, record.timestamp
        try:
            if kind == "events":
                return event_row(check_event(record.key, record.value), *where)
            return item_row(check_key(record.key), check_item(record.key, record.value), *where)
        except ValueError as error:
            self.rejected(record, error)
            return None

    def _fits(self, kind: Kind, record: Any, row: dict[str, Any]) -> bool:
        """Whether a row has a day of the calendar and numbers of its columns' width."""
        try:
            self._writer.tables(kind, [row])
        except UNFIT as error:
            self.rejected(record, error)
            return False
        return True

    def _flush(self, tp: TopicPartition) -> None:
        found = self._waiting.pop(tp)
        batch = self._writer.write(self._kinds[tp.topic], tp.partition, self._next[tp], found.last, found.parts)
        self._next[tp] = found.last + 1
        self.archived += found.rows
        log.info("%s/%d: %d records up to offset %d in %d files", tp.topic, tp.partition, found.rows, found.last, len(batch.files))

    def _merge(self) -> None:
        for kind in KINDS:
            if merged := self._writer.merge(kind, self._s.merge_records):
                log.info("%s: %d small batches merged", kind, merged)


def alone(url: str) -> AbstractContextManager[object]:
    """Held by the only archiver of an archive, where that is a folder. Raises StorageError."""
    if "://" in url and not url.startswith("file://"):
        return nullcontext()
    return claim(Path(url.removeprefix("file://")), "archive.url", "archiver")


def run(settings: Settings, once: bool) -> int:
    """Archive until SIGTERM or SIGINT, or `once`; returns how many records. Raises ArchiveError, BrokerError, StorageError."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with alone(settings.archive.url):
        archiver = Archiver(settings)
        archiver.claim()
        return archiver.run(stop.is_set, once)
