"""What the commands share: consoles, options, JSON, tables, progress. Whatever is shown is data: no markup, no control characters."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from streams.core.printable import printable
from streams.core.settings_errors import masked

WIDE = 10_000  # columns where nobody looks on: files and pipes want whole cells
out, err = Console(), Console(stderr=True)
_piped = Console(width=WIDE)
_CONTROLS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # those that JSON does not escape by itself
Config = Annotated[Path | None, typer.Option("--config", help="Settings file; ./currents.toml or $CURRENTS_CONFIG by default")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for scripts")]


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    row = orjson.dumps(value, default=lambda b: b.decode("utf-8", "backslashreplace")).decode()
    sys.stdout.write(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", row) + "\n")
    sys.stdout.flush()


def print_line(*parts: object, style: str = "") -> None:
    """Data as one line on stdout, never wrapped; `style` is of the whole line."""
    out.print(Text("  ".join(map(printable, parts)), style=style), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Data as a table on stdout: fitted to a terminal, whole cells elsewhere."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    show(table)


def show(drawn: RenderableType) -> None:
    """A table or panel on stdout, in the terminal's width; not cut where stdout is none."""
    (out if out.is_terminal else _piped).print(drawn)


def complain(text: str) -> None:
    """What went wrong, on stderr; credentials in URLs are masked."""
    lines = "\n".join(map(printable, masked(text).splitlines()))
    err.print(Text.assemble(("currents:", "bold red"), " ", lines), soft_wrap=True)


def progress(what: str) -> Progress:
    """A counter on stderr, on a terminal only."""
    columns = (SpinnerColumn(), TextColumn(what + " {task.completed:,}"), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
