"""`currents produce`: which files it reads, what it says of records, how far it says it came."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import MessageSizeTooLargeError, NotEnoughReplicasError
from typer.testing import CliRunner

from streams.commands import produce
from streams.commands.main import app
from streams.commands.records import files_of, records
from streams.core.errors import InputError

LINES = b'{"n": 1}\n\n{"n": 100000000000000000001}\r\n'
ARRAY = b' [{"n": 1},\n {"n": 100000000000000000001}]\n'
WANTED = [("line 1", b'{"n": 1}'), ("line 3", b'{"n": 100000000000000000001}')]
ELEMENTS = [("element 1", b'{"n": 1}'), ("element 2", b'{"n": 100000000000000000001}')]
FILES = {
    "a.jsonl": (LINES, WANTED),
    "a.jsonl.gz": (gzip.compress(LINES), WANTED),
    "any-name": (gzip.compress(LINES), WANTED),
    "mark.jsonl": (b"\xef\xbb\xbf" + LINES, WANTED),
    "mark.jsonl.gz": (gzip.compress(b"\xef\xbb\xbf" + LINES), WANTED),
    "array.json": (ARRAY, ELEMENTS),
    "array.json.gz": (gzip.compress(b"\xef\xbb\xbf" + ARRAY), ELEMENTS),
    "arrays.jsonl": (b"[1]\n[2]\n", [("line 1", b"[1]"), ("line 2", b"[2]")]),
    "empty.jsonl": (b"", []),
}


@pytest.mark.parametrize(("name", "content", "wanted"), [(n, c, w) for n, (c, w) in FILES.items()], ids=FILES)
def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, wanted: list[Any]) -> None:
    """Lines or an array, with gzip or a byte order mark: the same records, with their places, from a file and from standard input."""
    (tmp_path / name).write_bytes(content)
    assert list(records(files_of(str(tmp_path / name), "shop", False), False)) == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert list(records(files_of("-", "shop", False), False)) == wanted


def test_folders(tmp_path: Path) -> None:
    """A folder's files in order, each named where it is told of; of one as `currents world` writes it, those that are asked for."""
    (tmp_path / "2.json").write_bytes(b"[3]")
    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(b"1\n2\n"))
    (tmp_path / "read.me").write_bytes(b"no records")
    found = list(records(files_of(str(tmp_path), "shop", False), False))
    assert found == [("1.jsonl.gz: line 1", b"1"), ("1.jsonl.gz: line 2", b"2"), ("2.json: element 1", b"3")]
    for name in ("shop.events", "shop.items", "news.events"):
        (tmp_path / f"{name}.jsonl").write_text(f'"{name}"')
    for items, name in ((False, "shop.events"), (True, "shop.items")):
        assert [value for _, value in records(files_of(str(tmp_path), "shop", items), False)] == [f'"{name}"'.encode()]
    with pytest.raises(InputError, match="no files of these records"):
        files_of(str(tmp_path), "mall", False)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1}\n{\n', "line 2: not JSON"),
        (b"[1, 2", "line 1: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (gzip.compress(LINES * 100, mtime=0)[:-20], "not gzip to its end"),
        ("[1]".encode("utf-16"), "UTF-16, want UTF-8"),
    ],
)
def test_mistakes(tmp_path: Path, content: bytes, says: str) -> None:
    """What cannot be read is told with its place."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=says):
        list(records([tmp_path / "a"], False))


def test_raw(tmp_path: Path) -> None:
    """Raw lines are sent as they are, whatever they are."""
    (tmp_path / "a").write_bytes(b"{\n[1]\n")
    assert [r.value for r in records([tmp_path / "a"], True)] == [b"{", b"[1]"]


class Future:
    """Of a record that a broker takes, or does not."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def add_callback(self, taken: Callable[[Any], None]) -> "Future":
        if self._error is None:
            taken(None)
        return self

    def add_errback(self, refuse: Callable[[Exception], None]) -> "Future":
        if self._error is not None:
            refuse(self._error)
        return self


class Producer:
    """Takes records but for those that say otherwise."""

    def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def send(self, topic: str, value: bytes, key: bytes | None) -> Future:
        if b"too large" in value:
            raise MessageSizeTooLargeError("so many bytes")
        if b"Ctrl-C" in value:
            raise KeyboardInterrupt
        return Future(NotEnoughReplicasError("one is away") if b"refuse" in value else None)

    def flush(self, timeout: float) -> None:
        """Everything is there at once."""

    def close(self, timeout: float) -> None:
        """Nothing to close."""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[Any], *more: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(produce, "producer", lambda _: Producer())
    Path("currents.toml").write_text('[[platforms]]\nname = "shop"\ncode = 1\npreset = "plain"\n')
    Path("a.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    done = CliRunner().invoke(app, ["produce", "a.jsonl", "--platform", "shop", *more])
    return done.exit_code, done.stdout, done.stderr


GOOD = {"account": "ann", "item": "i1", "behavior": "buy", "time": 1_760_000_000_000}


def test_what_was_sent_before_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is no JSON stops it, and it says how many records before that were acknowledged; so does Ctrl-C."""
    status, _, told = run(tmp_path, monkeypatch, [GOOD, GOOD, "{", GOOD])
    assert status == 1
    assert "line 3: not JSON" in told
    assert "2 records were sent and acknowledged before that" in told
    status, _, told = run(tmp_path, monkeypatch, [GOOD, {**GOOD, "item": "Ctrl-C"}])
    assert (status, told) == (130, "currents: 1 records were sent and acknowledged before that\n")


def test_refused_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that the broker or the client does not take are told with their lines, and the others are sent."""
    status, _, told = run(tmp_path, monkeypatch, [GOOD, {**GOOD, "item": "refuse"}, GOOD, {**GOOD, "item": "too large"}, GOOD])
    assert status == 1
    assert "2 records were not taken: line 2: NotEnoughReplicas" in told
    assert "line 4: MessageSizeTooLarge" in told
    assert "3 records were sent and acknowledged" in told


def test_dead_letters_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that the mapping cannot use are sent, and told with their lines and reasons."""
    status, said, told = run(tmp_path, monkeypatch, [GOOD, {**GOOD, "behavior": "gawp"}, {**GOOD, "account": None}], "--json")
    assert (status, json.loads(said)) == (0, {"sent": 3})
    assert "2 of these will be dead letters" in told
    assert "line 2: unknown-behavior" in told
