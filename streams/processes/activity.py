"""Logs a worker's work, backlog and profile ages, one line a minute."""

import asyncio
import logging
from collections.abc import Callable

from streams.monitoring.metrics import Metrics

log = logging.getLogger("currents.worker")
EVERY_S = 60.0
COUNTED = {
    "records read": "currents_received_total",
    "events": "currents_events_total",
    "items": "currents_items_total",
    "dead letters": "currents_dead_letters_total",
    "events folded": "currents_folded_total",
    "profiles written": "currents_profiles_total",
}


class Activity:
    """Owns a worker's counts at the previous line. `waiting` returns the number of unacked records."""

    def __init__(self, metrics: Metrics, waiting: Callable[[], float]) -> None:
        self._metrics, self._waiting = metrics, waiting
        self._before = dict.fromkeys(COUNTED, 0.0)

    def line(self) -> str:
        """Return the counts since the previous line, as one line."""
        now = {what: self._metrics.value(name) for what, name in COUNTED.items()}
        told = ", ".join(f"{n - self._before[what]:,.0f} {what}" for what, n in now.items())
        self._before = now
        p50, p99 = self._metrics.age.percentiles(50, 99)
        return f"{told}; {self._waiting():,.0f} records wait; event to profile {p50:.0f} ms (p50), {p99:.0f} ms (p99)"

    async def tell(self, every_s: float = EVERY_S) -> None:
        """Log a line at each interval. Never returns."""
        while True:
            await asyncio.sleep(every_s)
            log.info("last %.0f s: %s", every_s, self.line())
