"""Fault points: named places where the chaos suite makes a worker die or stand still, and a wall clock that it moves.

Nothing, and at no cost, unless the process was started with $STREAMS_FAULTS, a folder in which files say what is to happen:

    <point>        "kill", "term" or "stop" and a number: the signal that the process sends itself there, after passing that often
    <point>.hit    the same file, once it happened
    clock          milliseconds by which the wall clock is off
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
"""A place that a worker passes, one of POINTS."""


def movable(clock: Callable[[], int]) -> Callable[[], int]:
    """A clock in ms; the same one, unless faults are on."""
    if not _folder:
        return clock

    def moved() -> int:
        try:
            return clock() + int(Path(_folder, "clock").read_text() or 0)
        except FileNotFoundError:
            return clock()

    return moved
