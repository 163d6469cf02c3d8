"""Records of files that people have: JSON lines, JSON arrays, with gzip or a byte order mark, a whole folder of them. Each knows where it stands."""

import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import orjson

from streams.core.errors import InputError

SUFFIXES = (".jsonl", ".ndjson", ".json")
GZIP, UTF8_MARK, UTF16_MARKS = b"\x1f\x8b", b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_WRITTEN_FOR = re.compile(r"\.(events|items)$")


class Record(NamedTuple):
    """A record, and where it stands: "line 3", "events.jsonl.gz: line 3"."""

    where: str
    value: bytes


def files_of(name: str, platform: str, items: bool) -> list[Path]:
    """The files that a name means, "-" for standard input: one, or those of a folder in order. Raises InputError where there are none.

    Of a folder in which files are named `<platform>.events.*` and `<platform>.items.*`, as `currents world` writes it, those that are asked for.
    """
    path = Path(name)
    if name == "-" or path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{name}: no such file")
    found = sorted(p for p in path.iterdir() if _stem(p) is not None and not p.name.startswith("."))
    if any(_WRITTEN_FOR.search(_stem(p) or "") for p in found):
        found = [p for p in found if _stem(p) == f"{platform}.{'items' if items else 'events'}"]
    if not found:
        raise InputError(f"{name}: no files of these records in the folder; want *{', *'.join(SUFFIXES)}, or with .gz")
    return found


def _stem(path: Path) -> str | None:
    """A file's name without suffix; None where it is of no kind that is read."""
    name = path.name.removesuffix(".gz")
    suffix = next((s for s in SUFFIXES if name.endswith(s)), None)
    return name.removesuffix(suffix) if suffix and path.is_file() else None


def records(files: list[Path], raw: bool) -> Iterator[Record]:
    """The records of files; `raw`: their lines as they are. Raises InputError, naming file and line, for what is no JSON."""
    for path in files:
        place = f"{path.name}: " if len(files) > 1 else ""
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
            try:
                for where, value in _lines(file) if raw else _values(file):
                    if not raw:
                        _check(value, place + where)
                    yield Record(place + where, value)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InputError(f"{path}: not gzip to its end: {error}") from None


def _lines(file: IO[bytes]) -> Iterator[Record]:
    for number, line in enumerate(_unzipped(file), 1):
        value = line.rstrip(b"\r\n")
        if value.strip():
            yield Record(f"line {number}", value)


def _values(file: IO[bytes]) -> Iterator[Record]:
    """The elements of an array that is the whole file, else its lines; without a byte order mark."""
    text = _unzipped(file)
    mark = text.peek(3)[:3]
    if mark.startswith(UTF16_MARKS):
        raise InputError("line 1: UTF-16, want UTF-8")
    if mark == UTF8_MARK:
        text.read(3)
    if text.peek(64)[:64].lstrip().startswith(b"["):
        whole = text.read()
        try:
            elements = msgspec.json.decode(whole, type=list[msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            text = io.BufferedReader(io.BytesIO(whole))  # lines, of which the first is an array
        else:
            yield from (Record(f"element {n}", bytes(element).strip()) for n, element in enumerate(elements, 1))
            return
    yield from _lines(text)


def _unzipped(file: Any) -> "io.BufferedReader[Any]":
    reader = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # a stream in the place of standard input
    return io.BufferedReader(gzip.GzipFile(fileobj=reader)) if reader.peek(2)[:2] == GZIP else reader


def _check(value: bytes, where: str) -> None:
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error} (--raw sends it all the same)") from None
