"""Rows of Currents' own topics that cannot be used: left out, counted, and told once in a while."""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

log = logging.getLogger("currents.rejected")
QUIET_S = 30.0
"""How long a topic and reason stay silent after a row was told."""
Count = Callable[[str, str], None]
"""Topic and reason of one row."""


class Place(Protocol):
    """Where a record stands."""

    @property
    def topic(self) -> str: ...  # noqa: D102 - as Kafka's clients name them

    @property
    def partition(self) -> int: ...  # noqa: D102

    @property
    def offset(self) -> int: ...  # noqa: D102


class At(NamedTuple):
    """A place of which the record itself is not at hand."""

    topic: str
    partition: int
    offset: int


class Rejected:
    """Owns what is said of rejected rows. Call it with a record and why it cannot be used. From any thread."""

    def __init__(self, count: Count = lambda topic, reason: None, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._told: dict[tuple[str, str], tuple[float, int]] = {}  # (topic, reason) -> when, and how many since
        self.total = 0

    def __call__(self, record: Place, error: Exception) -> None:
        """Leave out one record."""
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
