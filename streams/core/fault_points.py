"""Fault points: named places in the code where the chaos suite kills or stops a worker, and a wall clock that the suite can shift.

Fault points do nothing and cost nothing unless the environment variable $STREAMS_FAULTS names a folder at the start. The files in it are:

    <point>        "kill", "term" or "stop", and a number n: the process sends itself this signal at the point after passing it n times
    <point>.hit    the same file, renamed when the signal was sent
    clock          offset of the wall clock, ms
"""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

VARIABLE = "STREAMS_FAULTS"
POINTS = ("after-rocksdb", "in-publish", "after-changelog", "before-commit", "in-restore", "in-rebalance")
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_folder = os.environ.get(VARIABLE, "")
_passed = Counter[str]()


def _nothing(name: str) -> None:
    pass


def _reach(name: str) -> None:
    file = Path(_folder, name)
    try:
        what, _, times = file.read_text().partition(" ")
    except FileNotFoundError:
        return
    _passed[name] += 1
    if _passed[name] <= int(times or 0):
        return
    del _passed[name]
    file.rename(file.with_suffix(".hit"))
    os.kill(os.getpid(), SIGNALS[what])


point: Callable[[str], None] = _reach if _folder else _nothing
"""Marks a fault point. The argument is one of POINTS."""


def movable(clock: Callable[[], int]) -> Callable[[], int]:
    """Wrap a clock in ms with the offset from the file `clock`. Returns the clock unchanged if faults are off."""
    if not _folder:
        return clock

    def moved() -> int:
        try:
            return clock() + int(Path(_folder, "clock").read_text() or 0)
        except FileNotFoundError:
            return clock()

    return moved
