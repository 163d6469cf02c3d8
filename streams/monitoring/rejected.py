"""Skips, counts and logs unusable rows of Currents' own topics. Repeated log lines are held back."""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

log = logging.getLogger("currents.rejected")
QUIET_S = 30.0
"""Seconds for which lines about a topic and reason are held back after one was logged."""
Count = Callable[[str, str], None]
"""(topic, reason) of a row."""


class Place(Protocol):
    """The position of a record."""

    @property
    def topic(self) -> str: ...  # noqa: D102 - as Kafka's clients name them

    @property
    def partition(self) -> int: ...  # noqa: D102

    @property
    def offset(self) -> int: ...  # noqa: D102


class At(NamedTuple):
    """A position without the record itself."""

    topic: str
    partition: int
    offset: int


class Rejected:
    """Owns the counts and log lines of rejected rows. Call it with a record and the reason. Thread-safe."""

    def __init__(self, count: Count = lambda topic, reason: None, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._told: dict[tuple[str, str], tuple[float, int]] = {}  # (topic, reason) -> when, and how many since
        self.total = 0

    def __call__(self, record: Place, error: Exception) -> None:
        """Reject one record."""
        topic, reason = record.topic, getattr(error, "reason", "value")
        self.total += 1
        self._count(topic, reason)
        now = self._clock()
        at, held = self._told.get((topic, reason), (-QUIET_S, 0))
        if now - at < QUIET_S:
            self._told[topic, reason] = at, held + 1
            return
        self._told[topic, reason] = now, 0
        more = f" (and {held} like it since)" if held else ""
        log.warning("%s/%d@%d: left out: %s%s", topic, record.partition, record.offset, " ".join(str(error).split())[:300], more)
