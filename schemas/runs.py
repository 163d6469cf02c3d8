"""The folder of a run in steps: each leaves one JSON with its figures, and a step that has left it is not done again.

<folder>/<step>.json    what the step found, and "seconds" that it took; there once the step is done whole
<folder>/refused.json   {"why"}: the run is over, and nothing came of it
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REFUSED = "refused"


class Steps:
    """Steps of one run. `point` is called as "in <step>" between a step's work and its JSON, and as "after <step>": where a test ends the process."""

    def __init__(self, folder: Path, point: Callable[[str], None] = lambda at: None) -> None:
        self.folder, self._point = folder, point

    def done(self, name: str) -> dict[str, Any] | None:
        """What a step found; None where it was not done yet."""
        try:
            row: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return row

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` finds, or found in an earlier process."""
        if (row := self.done(name)) is not None:
            return row
        began = time.monotonic()
        row = work()
        self._point(f"in {name}")
        row = {**row, "seconds": round(time.monotonic() - began, 2)}
        self._put(name, row)
        self._point(f"after {name}")
        return row

    def refuse(self, why: str) -> None:
        """The run is over."""
        self._put(REFUSED, {"why": why})

    @property
    def refused(self) -> str | None:
        """Why it is over; None where it is not."""
        row = self.done(REFUSED)
        return None if row is None else str(row["why"])

    def _put(self, name: str, row: dict[str, Any]) -> None:
        stage = self.folder / f".{name}.part"
        with stage.open("w") as file:
            json.dump(row, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        stage.rename(self.folder / f"{name}.json")
