"""What the commands print is data: markup in it means nothing, control characters are shown escaped, and nothing is cut where nobody looks on."""

import io
import json
from typing import Any

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from schemas.profiles import Interest, Profile
from streams.commands import dead_letters, profiles, tail, terminal
from streams.commands.main import app
from streams.core.printable import printable
from streams.demo.portrait_panel import portrait
from streams.releases.release_log import Announced
from tests.schemas.test_codecs import LETTER, PROFILE, RELEASE

HOSTILE = "[/nope] [bold]x[/] \x1b]0;owned\x07\x1b[2J \x9b31m \u202egpj.exe\n"
ESCAPED = "[/nope] [bold]x[/] \\x1b]0;owned\\x07\\x1b[2J \\x9b31m \\u202egpj.exe\\n"


def hostile() -> Profile:
    """A profile with it wherever a producer could put it."""
    row = msgspec.to_builtins(PROFILE.interests[0])
    evidence = [{"item": HOSTILE, "title": HOSTILE, "behavior": "view", "at": 1}]
    interest = msgspec.convert({**row, "name": HOSTILE, "platforms": {HOSTILE: 1.0}, "evidence": evidence}, Interest)
    return msgspec.structs.replace(PROFILE, user_id=HOSTILE, interests=(interest,))


def shown(*command: str, status: int = 0) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, command)
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def harmless(text: str) -> bool:
    """Whether a terminal shows it as it is."""
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("text", ["ann", "zażółć 日本", "می\u200cخواهم", "👩\u200d🔬", "a\u00a0b", ""])
def test_ordinary_text(text: str) -> None:
    """Ordinary text of any language is shown as it is."""
    assert printable(text) == text


def test_controls() -> None:
    """Controls, turned writing and bytes that are no UTF-8 are shown escaped."""
    assert printable(HOSTILE) == ESCAPED
    assert printable(b"a\xff\x1b") == "a\\xff\\x1b"
    assert printable("\udcff\u2028") == "\\udcff\\u2028"


def test_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tail` shows a profile in one line, as JSON too."""
    monkeypatch.setattr(tail, "follow", lambda *_: iter([(HOSTILE, hostile())]))
    text = shown("tail")
    assert text.count(ESCAPED) == 2
    assert len(text.splitlines()) == 1
    assert harmless(text)
    row = shown("tail", "--json")
    assert harmless(row)
    assert json.loads(row)["user_id"] == HOSTILE


def test_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """`query` shows the whole names, however long, where stdout is no terminal."""
    row = msgspec.to_builtins(hostile()) | {"age_ms": 1}
    monkeypatch.setattr(profiles, "_call", lambda *_, **__: {"profiles": [row], "unknown": []})
    text = shown("query", "ann")
    assert text.count(ESCAPED) == 3
    assert harmless(text)


def test_screen() -> None:
    """The demo's screen draws it."""
    console = Console(file=io.StringIO(), width=300)
    console.print(portrait(hostile(), HOSTILE), portrait(None, HOSTILE))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count(ESCAPED) == 4
    assert harmless(text)


def test_dead_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dead-letters show` shows the bytes as they came, a field a line."""
    letter = msgspec.structs.replace(LETTER, key=b"\x1b", value=b"\xff" + HOSTILE.encode(), platform=HOSTILE, detail=HOSTILE)

    class Record:
        partition, offset = 0, 5

    monkeypatch.setattr(dead_letters, "_letters", lambda *_: iter([(Record, letter)]))
    text = shown("dead-letters", "show", "0:5")
    assert text.count(ESCAPED) == 3
    assert f"value: \\xff{ESCAPED}\n" in text
    assert harmless(text)


def test_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """`releases list` marks the records that count, and shows whole cells."""
    first = msgspec.structs.replace(RELEASE, state="promoted", version="v1", why="long " * 60)
    history = [Announced(0, "serving", first, ""), Announced(1, "serving", msgspec.structs.replace(first, version="v2", by=HOSTILE), "")]
    monkeypatch.setattr("streams.commands.releases.history_of", lambda _: history)
    monkeypatch.setattr(profiles, "health", lambda *_: {"encoders": {"serving": HOSTILE}, "refused": {HOSTILE: HOSTILE}})
    text = shown("releases", "list")
    rows = [line.split()[:4] for line in text.splitlines()]
    assert ["0", "serving", "v1", "promoted"] in rows
    assert ["*", "1", "serving", "v2"] in rows
    assert ("long " * 60).strip() in text
    assert text.count(ESCAPED) == 4
    assert harmless(text)


def test_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table fits a terminal, and keeps whole cells in a pipe."""
    rows: list[tuple[Any, ...]] = [("x" * 200, 1)]
    for is_terminal in (True, False):
        file = io.StringIO()
        monkeypatch.setattr(terminal, "out", Console(file=file, width=60, force_terminal=is_terminal))
        monkeypatch.setattr(terminal, "_piped", Console(file=file, width=terminal.WIDE))
        terminal.print_table(("name", "n"), rows)
        assert ("x" * 61 in file.getvalue()) != is_terminal


def test_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    """An error is escaped too, and keeps its lines."""
    terminal.complain(f"one {HOSTILE}two")
    assert capsys.readouterr().err == f"currents: one {ESCAPED.removesuffix(chr(92) + 'n')}\ntwo\n"
