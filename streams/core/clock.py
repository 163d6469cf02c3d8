"""The wall clock of a process, which the chaos suite can move."""

import time

from streams.core import fault_points as faults


@faults.movable
def now_ms() -> int:
    """Return the wall-clock time, ms since the epoch."""
    return time.time_ns() // 1_000_000
