"""The number of records that wait for a worker, and whether the worker is overloaded."""

from streams.state.tablets import Tablets
from streams.transport.faust_batches import BatchApp

OVERLOADED_SHARE = 4
"""A worker is overloaded while more than 1 / OVERLOADED_SHARE of its largest batch waits."""


class Backlog:
    """Owns the count of unacked records in assigned partitions. `topic`: the unified topic; `largest`: records of the largest batch."""

    def __init__(self, app: BatchApp, tablets: Tablets, topic: str, largest: int) -> None:
        self._app, self._tablets, self._topic, self._most = app, tablets, topic, largest // OVERLOADED_SHARE

    def records(self) -> float:
        """Number of unacked records in all assigned partitions; 0 while no partition is assigned."""
        if self._tablets.generation is None:
            return 0
        return sum(self._app.lag(tp) or 0 for tp in self._app.consumer.assignment())

    def overloaded(self) -> bool:
        """Whether more unified events wait than the share of a batch that OVERLOADED_SHARE gives. Recomputing pauses then."""
        if self._tablets.generation is None:
            return False
        return sum(self._app.lag(tp) or 0 for tp in self._app.consumer.assignment() if tp.topic == self._topic) > self._most
