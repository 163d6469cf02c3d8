"""The archive: how it lies, what a process that dies leaves, merges."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from schemas.archive import Archive, ArchiveError, Batch, current, decode_batch, encode_batch, ends, event_row, groups, item_row, newest
from schemas.events import Event, encode_event
from schemas.items import ItemVector
from streams.processes.archiver import Writer

DAY = 86_400_000
NAMES = {1: "shop", 2: "news/world"}


def event(n: int) -> Event:
    """The n-th of a log over three days and two platforms; every optional field is there or not."""
    value, dwell = (None if n % 3 else n / 7), (n / 3 if n % 4 else None)
    return Event(1, f"u{n % 5}", 1_700_000_000_000 + n % 3 * DAY + n, 2**64 - 1 - n, 1 + n % 2, n % 14, f"ä{n % 9}", "a", value, dwell, "t", 3, n)


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [event_row(event(n), 0, n, n) for n in range(first, last + 1)]


class Killed(Exception):
    pass


class Dying(Writer):
    """Dies before its n-th file is there under its name."""

    def __init__(self, archive: Archive, left: int) -> None:
        super().__init__(archive, NAMES)
        self._left = left

    def put(self, name: str, data: bytes) -> None:
        self._left -= 1
        if self._left < 0:
            (Path(self._archive.root) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(self._archive.root) / name).with_name(f".{name.rpartition('/')[2]}.part").write_bytes(data[: len(data) // 2])
            raise Killed
        super().put(name, data)


def write(writer: Writer, first: int, last: int) -> None:
    writer.write("events", 0, first, last, {k: [v] for k, v in writer.tables("events", rows(first, last)).items()})


def read(archive: Archive) -> list[bytes]:
    return [encode_event(e) for e in archive.events()]


LOG = [encode_event(event(n)) for n in range(60)]


def test_bytes_come_back(tmp_path: Path) -> None:
    """Events come back as the bytes that they were, in the order of offsets, also of a URL; files lie by day and platform and hold nothing else's."""
    for url in (str(tmp_path / "a"), f"memory://{tmp_path.name}"):
        archive = Archive(url)
        writer = Writer(archive, NAMES)
        write(writer, 0, 29)
        write(writer, 30, 59)
        assert read(archive) == LOG
        assert [encode_event(e) for e in archive.events({0: (17, 42)})] == LOG[17:42]
        assert list(archive.events({1: (0, 99)})) == []
    found = sorted(p.relative_to(tmp_path / "a").parent.as_posix() for p in (tmp_path / "a").glob("events/**/*.parquet"))
    assert len(found) == 12
    assert found[0] == "events/day=2023-11-14/platform=news%2Fworld"
    one = next((tmp_path / "a" / found[0]).glob("*.parquet"))
    assert one.name in ("00000-00000000000000000000-00000000000000000029.parquet", "00000-00000000000000000030-00000000000000000059.parquet")
    assert set(parquet.ParquetFile(one).read()["platform_code"].to_pylist()) == {2}


def test_items(tmp_path: Path) -> None:
    """Of an item the newest vector counts, where it stands; one that went is not there."""
    archive = Archive(str(tmp_path))
    writer = Writer(archive, NAMES)
    vectors = [ItemVector(f"shop:{n % 4}", "title", ("a", "b"), "s", 2, bytes([n] * 4), 1_700_000_000_000 + n) for n in range(6)]
    made = [item_row(v.item, v, 0, n, n) for n, v in enumerate(vectors)] + [item_row("shop:3", None, 0, 6, 6)]
    writer.write("items", 0, 0, 6, {k: [v] for k, v in writer.tables("items", made).items()})
    assert newest(archive.items()) == [vectors[2], vectors[4], vectors[5]]
    assert newest([("a", 1), ("b", 2), ("a", 3), ("b", None)]) == [3]


@pytest.mark.parametrize("left", range(9))
def test_killed_while_writing(tmp_path: Path, left: int) -> None:
    """Killed before any of its files, the next process goes on after the last whole batch; every record is there once, and nothing is left over."""
    archive = Archive(str(tmp_path))
    write(Writer(archive, NAMES), 0, 19)
    try:
        write(Dying(archive, left), 20, 39)
    except Killed:
        assert read(archive) == LOG[:20]
    again = Writer(archive, NAMES)
    again.sweep("events")
    begin = ends(archive.batches("events"))[0]
    write(again, begin, 59)  # another size of batch: more has come meanwhile
    again.sweep("events")
    assert read(archive) == LOG
    named = {name for b in archive.batches("events") for name in b.files}
    assert {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "events").rglob("*") if p.is_file()} == named


@pytest.mark.parametrize("left", range(9))
def test_killed_while_merging(tmp_path: Path, left: int) -> None:
    """A merge that is killed changes nothing that is read; done again it leaves one batch, and no small files."""
    archive = Archive(str(tmp_path))
    for first in range(0, 60, 6):
        write(Writer(archive, NAMES), first, first + 5)
    try:
        Dying(archive, left).merge("events", 1000)
    except Killed:
        assert len(archive.batches("events")) == 10
    assert read(archive) == LOG
    Writer(archive, NAMES).merge("events", 1000)
    assert read(archive) == LOG
    assert len(archive.batches("events")) == 1
    assert len(list(tmp_path.glob("events/**/*.parquet"))) == 6
    write(Writer(archive, NAMES), 60, 61)
    assert len(read(archive)) == 62


def test_merged_while_read(tmp_path: Path) -> None:
    """A reader whose files are merged away between two batches goes on with the merged ones: every record once."""
    archive = Archive(str(tmp_path))
    for first in range(0, 60, 6):
        write(Writer(archive, NAMES), first, first + 5)
    found = archive.events()
    begun = [encode_event(next(found)) for _ in range(9)]
    Writer(archive, NAMES).merge("events", 1000)
    assert begun + [encode_event(e) for e in found] == LOG


SPAN = st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 12))


@given(st.lists(SPAN, max_size=12))
@settings(max_examples=200, deadline=None)
def test_overlaps(spans: list[tuple[int, int, int]]) -> None:
    """Whatever batches overlap, every offset that any of them has is read once."""
    batches = [Batch(p, first, first + more, {}) for p, first, more in spans]
    read = [(b.partition, n) for b, begin in current(batches) for n in range(begin, b.last + 1)]
    assert len(read) == len(set(read))
    assert read == sorted({(b.partition, n) for b in batches for n in range(b.first, b.last + 1)})


def test_groups() -> None:
    """Only runs of enough small batches of one partition are merged, none beyond the target."""
    sizes = [(0, 10), (0, 10), (0, 10), (0, 200), (0, 10), (0, 10), (1, 10), (1, 60), (1, 60), (1, 10)]
    batches = [(Batch(p, n, n, {"f": rows}), n) for n, (p, rows) in enumerate(sizes)]
    assert [[b.first for b, _ in run] for run in groups(batches, 100, 2)] == [[0, 1, 2], [4, 5], [6, 7], [8, 9]]
    assert [[b.first for b, _ in run] for run in groups(batches, 100, 3)] == [[0, 1, 2]]


def test_bad_archive(tmp_path: Path) -> None:
    """A batch that is none, another version, another format, a file that is gone, an unknown URL: one line that says which."""
    batch = Batch(1, 2, 3, {"a": 1})
    assert decode_batch(batch.name, encode_batch(batch)) == batch
    for name, data in ((batch.name, b"{"), (batch.name, b"[]"), (batch.name, b'{"v": 2, "files": {}}'), ("x", b'{"v": 1, "files": {}}')):
        with pytest.raises(ArchiveError, match=f"{name}.json: not a batch"):
            decode_batch(name, data)
    archive = Archive(str(tmp_path))
    assert archive.about() is None
    (tmp_path / "archive.json").write_text('{"format": 9}')
    with pytest.raises(ArchiveError, match=r"want format 1, got \{'format': 9\}"):
        archive.about()
    write(Writer(archive, NAMES), 0, 5)
    next(tmp_path.glob("events/**/*.parquet")).unlink()
    with pytest.raises(ArchiveError, match="a file that a batch names is missing"):
        read(archive)
    with pytest.raises(ArchiveError, match="archive nope://x: "):
        Archive("nope://x")
