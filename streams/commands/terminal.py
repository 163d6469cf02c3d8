"""What the commands share: consoles, options, JSON, progress."""

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

out, err = Console(), Console(stderr=True)
Config = Annotated[Path | None, typer.Option("--config", help="Settings file; ./currents.toml or $CURRENTS_CONFIG by default")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for scripts")]


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(orjson.dumps(value, default=lambda b: b.decode("utf-8", "backslashreplace")).decode() + "\n")
    sys.stdout.flush()


def progress(what: str) -> Progress:
    """A counter on stderr, on a terminal only."""
    columns = (SpinnerColumn(), TextColumn(what + " {task.completed:,}"), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
