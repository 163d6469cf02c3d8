"""The event archive: events and items of the unified topics as Parquet files, each record once; its format and its reader.

<url>/archive.json                                                                 {"format": 1, "topics": {kind: {topic, topic_id, partitions}}}
<url>/events/day=2026-11-25/platform=shop/00003-<first offset>-<last offset>.parquet   day: UTC, of the event
<url>/items/day=…/platform=…/…                                                       day: UTC, of the vector
<url>/batches/events/00003-<first>-<last>.json                                       {"v": 1, "files": {path: rows}}

A batch has one partition's records from the first to the last offset, in one file per day and platform. A batch exists once its JSON exists. Files
that no batch names are leftovers of a process that died. A batch inside another batch is a leftover of a merge. Two batches that overlap have the
same records in the overlap. So readers return every offset once, whenever a process died.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from schemas.events import VERSION as EVENT_VERSION
from schemas.events import Event
from schemas.items import ItemVector

FORMAT, VERSION = 1, 1
ABOUT, BATCHES = "archive.json", "batches"
T = TypeVar("T")
Kind = Literal["events", "items"]
KINDS: tuple[Kind, ...] = ("events", "items")
EVENT_FIELDS = Event.__struct_fields__[1:]
EVENT_COLUMNS = tuple("platform_code" if f == "platform" else f for f in EVENT_FIELDS)  # `platform` is a key of the folder's name
ITEM_FIELDS = ItemVector.__struct_fields__
CHUNK = 10_000  # rows that are converted to Python objects at once
TRIES = 3  # a merge may delete files during a read


class ArchiveError(RuntimeError):
    """An archive cannot be read or written. The message has the archive and the cause."""


@dataclass(frozen=True)
class Batch:
    """Owns the description of a batch: the records of one partition with offsets `first` to `last`, both included."""

    partition: int
    first: int
    last: int
    files: Mapping[str, int]
    """Path within the archive -> number of rows."""

    @property
    def name(self) -> str:
        """The stem of the batch's file names."""
        return f"{self.partition:05d}-{self.first:020d}-{self.last:020d}"

    @property
    def rows(self) -> int:
        """Number of rows in all files."""
        return sum(self.files.values())


def encode_batch(batch: Batch) -> bytes:
    """Batch -> bytes of its JSON file."""
    return json.dumps({"v": VERSION, "files": dict(batch.files)}).encode()


def decode_batch(name: str, data: bytes) -> Batch:
    """Stem of a JSON file's name, and the file's bytes -> Batch. Raises ArchiveError if they are no batch."""
    try:
        partition, first, last = (int(part) for part in name.split("-"))
        row = json.loads(data)
        if row["v"] != VERSION:
            raise ValueError(f"version {row['v']}, this release reads {VERSION}")
        return Batch(partition, first, last, {str(k): int(v) for k, v in row["files"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{name}.json: not a batch: {error}") from None


def current(batches: Iterable[Batch]) -> list[tuple[Batch, int]]:
    """Return the batches to read, in order of partition and offset, each with the first offset to read. They cover every offset once."""
    out, partition, covered = list[tuple[Batch, int]](), -1, -1
    for b in sorted(batches, key=lambda b: (b.partition, b.first, -b.last)):
        if b.partition != partition:
            partition, covered = b.partition, -1
        if b.last > covered:
            out.append((b, max(b.first, covered + 1)))
            covered = b.last
    return out


def spans(batches: Iterable[Batch]) -> dict[int, tuple[int, int]]:
    """Return partition -> (first archived offset, offset after the last)."""
    out = dict[int, tuple[int, int]]()
    for batch, begin in current(batches):
        out[batch.partition] = (out.get(batch.partition, (begin, 0))[0], batch.last + 1)
    return out


def ends(batches: Iterable[Batch]) -> dict[int, int]:
    """Return partition -> offset after the last archived one."""
    return {partition: end for partition, (_, end) in spans(batches).items()}


def folder_of(kind: Kind, at_ms: int, platform: str) -> str:
    """Return the folder of a day's and platform's rows, relative to the archive."""
    return f"{kind}/day={datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}/platform={quote(platform, safe='')}"


def schema(kind: Kind) -> Any:
    """Return the pyarrow schema of a kind's files. `partition`, `offset`: those of the platform topic; `unified_*`: those of the unified topic."""
    import pyarrow as pa

    own = [("unified_partition", pa.int32()), ("unified_offset", pa.int64()), ("unified_at_ms", pa.int64())]
    if kind == "events":
        kinds = [pa.string(), pa.int64(), pa.uint64(), pa.uint8(), pa.uint8(), pa.string(), pa.string(), pa.float64(), pa.float64()]
        return pa.schema([*zip(EVENT_COLUMNS, [*kinds, pa.string(), pa.int32(), pa.int64()], strict=True), *own])
    kinds = [pa.string(), pa.string(), pa.list_(pa.string()), pa.string(), pa.int32(), pa.binary(), pa.int64()]
    return pa.schema([*zip(ITEM_FIELDS, kinds, strict=True), ("gone", pa.bool_()), *own])


class Archive:
    """Owns the reading of an archive at a folder or fsspec URL. Raises ArchiveError if the archive cannot be opened."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise ArchiveError(f"archive {url}: {error}") from None

    def path(self, name: str) -> str:
        """Return the full path of a file within the archive."""
        return f"{self.root}/{name}"

    def about(self) -> dict[str, Any] | None:
        """Return the content of archive.json, None if there is no archive yet. Raises ArchiveError if it is unreadable or has another format."""
        try:
            row: Any = json.loads(self.fs.cat_file(self.path(ABOUT)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ArchiveError(f"archive {self.url}: {ABOUT}: {error}") from None
        if not isinstance(row, dict) or row.get("format") != FORMAT:
            raise ArchiveError(f"archive {self.url}: {ABOUT}: want format {FORMAT}, got {row}")
        return row

    def batches(self, kind: Kind) -> list[Batch]:
        """Return every batch, leftovers of merges included."""
        self.fs.invalidate_cache()
        found = []
        for path in self.fs.find(self.path(f"{BATCHES}/{kind}")):
            name = path.rsplit("/", 1)[1]
            if name.endswith(".json"):
                try:
                    found.append(decode_batch(name.removesuffix(".json"), self.fs.cat_file(path)))
                except FileNotFoundError:
                    continue  # merged meanwhile: the next listing has the merged batch
        return found

    def tables(self, batch: Batch, kind: Kind, begin: int = 0) -> dict[str, Any]:
        """Return folder -> pyarrow table of a batch's rows from offset `begin` on."""
        import pyarrow.compute
        from pyarrow import parquet

        out = {}
        for name in batch.files:
            with self.fs.open(self.path(name), "rb") as file:
                found = parquet.read_table(file, schema=schema(kind))
            out[name.rpartition("/")[0]] = found.filter(pyarrow.compute.field("unified_offset") >= begin)
        return out

    def rows(self, kind: Kind, spans: Mapping[int, tuple[int, int]] | None = None) -> Iterator[dict[str, Any]]:
        """Yield every record once, in order of partition and offset. Raises ArchiveError.

        `spans`: partition -> (first offset, offset after the last); None for all records.
        """
        done = dict[int, int]()  # partition -> offset after the last yielded record
        for attempt in range(TRIES):
            try:
                yield from self._rows(kind, spans, done)
                return
            except FileNotFoundError as error:
                if attempt == TRIES - 1:
                    raise ArchiveError(f"archive {self.url}: a file that a batch names is missing: {error}") from None
            except OSError as error:  # pyarrow's errors are OSErrors too
                raise ArchiveError(f"archive {self.url}: {' '.join(str(error).split())}") from None

    def _rows(self, kind: Kind, spans: Mapping[int, tuple[int, int]] | None, done: dict[int, int]) -> Iterator[dict[str, Any]]:
        for batch, begin in current(self.batches(kind)):
            low, high = (0, batch.last + 1) if spans is None else spans.get(batch.partition, (0, 0))
            low = max(low, begin, done.get(batch.partition, 0))
            if low < high and batch.last >= low:
                import pyarrow as pa

                if parts := self.tables(batch, kind, low):
                    for part in pa.concat_tables(parts.values()).sort_by("unified_offset").to_batches(CHUNK):
                        yield from (row for row in part.to_pylist() if row["unified_offset"] < high)
                done[batch.partition] = batch.last + 1

    def events(self, spans: Mapping[int, tuple[int, int]] | None = None) -> Iterator[Event]:
        """Yield events as `rows` does."""
        return (Event(EVENT_VERSION, *(row[name] for name in EVENT_COLUMNS)) for row in self.rows("events", spans))

    def items(self, spans: Mapping[int, tuple[int, int]] | None = None) -> Iterator[tuple[str, ItemVector | None]]:
        """Yield (item, vector) as `rows` does; None for the vector if the item was deleted."""
        for row in self.rows("items", spans):
            value = None if row["gone"] else ItemVector(**{name: row[name] for name in ITEM_FIELDS} | {"categories": tuple(row["categories"] or ())})
            yield row["item"], value


def newest(rows: Iterable[tuple[Any, T | None]]) -> list[T]:
    """(key, value) pairs in log order -> the last value of each key, in the order of the last records; without keys whose last value is None."""
    last = dict[Any, T | None]()
    for key, value in rows:
        last.pop(key, None)
        last[key] = value
    return [value for value in last.values() if value is not None]


def event_row(event: Event, partition: int, offset: int, at_ms: int) -> dict[str, Any]:
    """Return a row of the events' files."""
    return dict(zip(EVENT_COLUMNS, (getattr(event, f) for f in EVENT_FIELDS), strict=True)) | _own(partition, offset, at_ms)


def item_row(name: str, value: ItemVector | None, partition: int, offset: int, at_ms: int) -> dict[str, Any]:
    """Return a row of the items' files. `value` is None if the item was deleted."""
    row: dict[str, Any] = {"item": name, "gone": True}
    if value is not None:
        row = {f: getattr(value, f) for f in ITEM_FIELDS} | {"item": name, "categories": list(value.categories), "gone": False}
    return row | _own(partition, offset, at_ms)


def _own(partition: int, offset: int, at_ms: int) -> dict[str, Any]:
    return {"unified_partition": partition, "unified_offset": offset, "unified_at_ms": at_ms}


def groups(batches: Sequence[tuple[Batch, int]], target: int, fewest: int) -> list[list[tuple[Batch, int]]]:
    """Return runs of a partition's consecutive batches to merge. All batches are smaller than `target` rows.

    A run has at least `fewest` batches, and at most `target` rows in all.
    """
    out, run, rows = list[list[tuple[Batch, int]]](), list[tuple[Batch, int]](), 0
    for found in batches:
        small = found[0].rows < target
        if run and (not small or rows + found[0].rows > target or run[0][0].partition != found[0].partition):
            out.append(run)
            run, rows = [], 0
        if small:
            run.append(found)
            rows += found[0].rows
    return [r for r in [*out, run] if len(r) >= fewest]
