"""The process's log lines: our own at the level asked for, the libraries' errors, and no line over and over."""

import logging
import time
from collections.abc import Callable

QUIET_S = 30.0
"""How long a line from one place in the code stays silent after it was logged."""
LIBRARIES = ("faust", "mode", "aiokafka", "kafka")


class OnceInAWhile(logging.Filter):
    """Lets a library's line through once in QUIET_S, with how often it was held back: a lost broker is told hundreds of times a second.

    A connection's error is told by its name: where in the library it was met says nothing to who reads the log.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log; ours always."""
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
    """Our own lines at `level`, the libraries' errors once in a while; everything when debugging."""
    logging.basicConfig(level=logging.DEBUG if level == "debug" else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("currents").setLevel(level.upper())
    if level == "debug":
        return
    for handler in logging.getLogger().handlers:
        handler.addFilter(OnceInAWhile())
    for noisy in LIBRARIES:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("streams").setLevel(logging.CRITICAL)  # Faust's own, by the name of our module: a crash is told once, at the end
