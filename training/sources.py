"""Where logs come from: files through the platforms' mappings, the unified topic between two offsets, or the event archive.

A folder holds, per platform of the settings, `<platform>.events.*` and `<platform>.items.*`; `*` is jsonl, jsonl.gz or parquet.
"""

import gzip
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import orjson

from encoder.towers import Tower
from schemas.declaration import PlatformMapping
from schemas.events import UNIFIED_EVENTS, Event, decode_event
from schemas.items import UNIFIED_ITEMS, Item, content, decode_item_vector, item_name
from schemas.mapping import Mapper, Rejected
from schemas.windows import DTYPE, row_of
from training.archived import archive_rows, archived
from training.log import EventLog, catalogue, event_log
from training.splits import DataError

KINDS = (".jsonl", ".jsonl.gz", ".parquet")
SHOWN = 3
BAD_SHARE = 0.5
"""More bad records than this share of a file, and the mapping is wrong, not the data."""


@dataclass
class Bad:
    """Records that could not be used: how many by reason, and where the first ones are."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, where: str, rejected: Rejected) -> None:
        """Count one."""
        self.counts[rejected.reason] += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{where}: {rejected.reason}: {rejected.detail}")

    def __str__(self) -> str:
        counted = ", ".join(f"{reason} {n}" for reason, n in self.counts.most_common())
        return f"{self.counts.total()} records left out ({counted}); first: " + "; ".join(self.first)


@dataclass
class Records:
    """What a source holds, before items have vectors."""

    platforms: dict[int, str]
    """Code -> name."""
    events: list[Event] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    """Platform code of each item."""

    def texts(self) -> list[str]:
        """What a text tower reads of each item."""
        return [content(i) for i in self.items]

    def log(self, vectors: np.ndarray) -> EventLog:
        """With the (items, D) vectors of the items."""
        return from_events(self.events, self.items, vectors, self.codes, self.platforms)


def read_folder(folder: Path, platforms: Sequence[PlatformMapping], tower: Tower, earliest_ms: int, warn: Callable[[str], None]) -> EventLog:
    """All platforms' files -> EventLog. Raises DataError naming file, line and reason; single bad records are counted and warned of."""
    found = folder_records(folder, platforms, earliest_ms, warn)
    return found.log(tower.encode(found.texts()))


def folder_records(folder: Path, platforms: Sequence[PlatformMapping], earliest_ms: int, warn: Callable[[str], None]) -> Records:
    """All platforms' files -> Records. Raises DataError as read_folder does."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; want one with <platform>.events.jsonl and <platform>.items.jsonl")
    found = {p.name: (_file(folder, f"{p.name}.events"), _file(folder, f"{p.name}.items")) for p in platforms}
    if not any(events for events, _ in found.values()):
        wanted = ", ".join(f"{p.name}.events{{{','.join(KINDS)}}}" for p in platforms) or "nothing: the settings declare no [[platforms]]"
        raise DataError(f"{folder}: holds no events; want {wanted}")
    now_ms, out = time.time_ns() // 1_000_000, Records({p.code: p.name for p in platforms})
    for p in platforms:
        event_file, item_file = found[p.name]
        if event_file is None:
            continue
        if item_file is None:
            raise DataError(f"platform {p.name}: has events but no items; want {folder / p.name}.items.jsonl (or .parquet)")
        mapper = Mapper(p, 300_000, earliest_ms)
        read = _events(event_file, mapper, now_ms, warn)
        things = _items(item_file, mapper, warn)
        if not things:
            raise DataError(f"platform {p.name}: {item_file} holds no items")
        out.events += read
        out.items += things
        out.codes += [p.code] * len(things)
    return out


def from_events(events: Sequence[Event], items: Sequence[Item], vectors: np.ndarray, codes: Sequence[int], platforms: dict[int, str]) -> EventLog:
    """Unified events and their items, in any order -> EventLog."""
    if not events:
        raise DataError("too few events: none at all")
    rows = np.frombuffer(b"".join(row_of(e, item_name(platforms[e.platform], e.item_id)) for e in events), DTYPE)
    return event_log([e.user_id for e in events], rows, catalogue([i.item for i in items], vectors, codes, platforms))


def _events(path: Path, mapper: Mapper, now_ms: int, warn: Callable[[str], None]) -> list[Event]:
    out, bad, n = list[Event](), Bad(), 0
    for n, raw in enumerate(records(path), 1):
        mapped = mapper.events(raw, path.name, 0, n, now_ms)
        if isinstance(mapped, Rejected):
            bad.add(f"{path.name} line {n}", mapped)
        else:
            out += mapped
    _judge(path, bad, n, warn)
    return out


def _items(path: Path, mapper: Mapper, warn: Callable[[str], None]) -> list[Item]:
    out, bad, n = list[Item](), Bad(), 0
    for n, raw in enumerate(records(path), 1):
        mapped = mapper.items(raw)
        if isinstance(mapped, Rejected):
            bad.add(f"{path.name} line {n}", mapped)
        else:
            out += [i for i in mapped if isinstance(i, Item)]
    _judge(path, bad, n, warn)
    return out


def _judge(path: Path, bad: Bad, n: int, warn: Callable[[str], None]) -> None:
    if bad.counts.total() > BAD_SHARE * n:
        raise DataError(f"{path}: {bad} of {n}; is the mapping right?")
    if bad.counts:
        warn(f"{path}: {bad}")


def records(path: Path) -> Iterator[bytes]:
    """The JSON of every line, or of every row of a Parquet file. Raises DataError for a file that cannot be read."""
    try:
        if path.name.endswith(".parquet"):
            from pyarrow import parquet

            for part in parquet.ParquetFile(path).iter_batches(10_000):
                for row in part.to_pylist():
                    yield orjson.dumps(row, default=str)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    yield line.rstrip(b"\r\n")
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error) as error:  # pyarrow's own are among these
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _file(folder: Path, stem: str) -> Path | None:
    found: list[Any] = [folder / (stem + kind) for kind in KINDS if (folder / (stem + kind)).exists()]
    if len(found) > 1:
        raise DataError(f"{folder}: both {found[0].name} and {found[1].name}; want one")
    return found[0] if found else None


# The unified topic, as `currents train topic` writes it down (values one after the other, MessagePack each), or as `currents archive` does.


def unified(folder: str | Path) -> bool:
    """Whether a folder holds the unified topic, or it and a URL an archive of it. Raises DataError for one that cannot be opened."""
    return (Path(folder) / UNIFIED_EVENTS).exists() or archived(str(folder))


def read_unified(folder: str | Path, platforms: dict[int, str], tower: Tower) -> EventLog:
    """Values of `currents.events` and `currents.item-vectors`, or an archive of them -> EventLog. Raises DataError where they do not fit."""
    found, vectors = unified_records(folder, platforms, tower.space_id)
    return found.log(np.array([np.frombuffer(v, "<f2") for v in vectors], np.float32).reshape(len(vectors), tower.dims))


def unified_records(folder: str | Path, platforms: dict[int, str], space_id: str | None = None) -> tuple[Records, list[bytes]]:
    """The same as Records, and each item's vector as stored; of items of one space, or of any. Of an item's text there is title and categories."""
    if archived(str(folder)):
        events, stored = archive_rows(str(folder))
    else:
        try:
            events = [decode_event(raw) for raw in _values(Path(folder) / UNIFIED_EVENTS)]
            stored = [decode_item_vector(raw) for raw in _values(Path(folder) / UNIFIED_ITEMS)]
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: {error}") from None
    strange = {e.platform for e in events} - platforms.keys()
    if strange:
        raise DataError(f"platform code {min(strange)}: stands in the log, but not in the settings' [[platforms]]")
    mine = [i for i in stored if space_id in (None, i.space_id)]
    platform_of = [i.item.split(":", 1)[0] for i in mine]
    for code in sorted({e.platform for e in events}):
        if platforms[code] not in platform_of:
            raise DataError(f"platform {platforms[code]}: has events but no item vectors" + (f" of space {space_id}" if space_id else ""))
    codes = {name: code for code, name in platforms.items()}
    things = [Item(i.item, i.title, i.categories) for i in mine]
    return Records(platforms, events, things, [codes.get(p, 0) for p in platform_of]), [i.vector for i in mine]


def _values(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) + 1)
    unpacker.feed(data)
    begin = 0
    while begin < len(data):
        try:
            unpacker.skip()
        except msgpack.OutOfData:
            raise ValueError(f"{path.name}: cut at byte {begin}") from None
        yield data[begin : unpacker.tell()]
        begin = unpacker.tell()
