"""Logging of a process: Currents' lines at the configured level, errors of libraries, with repeated lines held back."""

import logging
import time
from collections.abc import Callable

QUIET_S = 30.0
"""Seconds for which a line from one place in the code is held back after it was logged."""
LIBRARIES = ("faust", "mode", "aiokafka", "kafka")


class OnceInAWhile(logging.Filter):
    """Owns the record of when each library line was last logged, and passes each line once in QUIET_S with the number of lines held back.

    Without the filter a lost broker fills the log with hundreds of lines a second. A connection error is logged by name and message without a
    traceback, because the place in the library says nothing to an operator.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record; always True for Currents' own records."""
        if record.name.startswith("currents"):
            return True
        place, now = (record.pathname, record.lineno), self._clock()
        since, held = self._seen.get(place, (-QUIET_S, 0))
        if now - since < QUIET_S:
            self._seen[place] = (since, held + 1)
            return False
        self._seen[place] = (now, 0)
        error = record.exc_info[1] if record.exc_info else None
        told = f": {type(error).__name__}: {error}" if isinstance(error, OSError) else ""
        if told:
            record.exc_info = None
        if held:
            told += f" (and {held} like it in {now - since:.0f} s)"
        record.msg, record.args = record.getMessage() + told, None
        return True


def set_up_logging(level: str) -> None:
    """Log Currents' lines at `level` and errors of libraries through `OnceInAWhile`. The level `debug` logs everything."""
    logging.basicConfig(level=logging.DEBUG if level == "debug" else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("currents").setLevel(level.upper())
    if level == "debug":
        return
    for handler in logging.getLogger().handlers:
        handler.addFilter(OnceInAWhile())
    for noisy in LIBRARIES:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("streams").setLevel(logging.CRITICAL)  # Faust logs under this name; the command line reports a crash once
