"""How many records wait for a worker."""

from streams.state.tablets import Tablets
from streams.transport.faust_batches import BatchApp

OVERLOADED_SHARE = 4
"""A worker is overloaded while more than this part of its largest batch waits: a quarter."""


class Backlog:
    """Counts the records of assigned partitions that are not acked. `topic`: the unified events; `largest`: records of the largest batch."""

    def __init__(self, app: BatchApp, tablets: Tablets, topic: str, largest: int) -> None:
        self._app, self._tablets, self._topic, self._most = app, tablets, topic, largest // OVERLOADED_SHARE

    def records(self) -> float:
        """Records of all assigned partitions that are not acked yet; 0 while there are none."""
        if self._tablets.generation is None:
            return 0
        return sum(self._app.lag(tp) or 0 for tp in self._app.consumer.assignment())

    def overloaded(self) -> bool:
        """Whether more unified events wait than a large part of one batch: then recomputing has to wait."""
        if self._tablets.generation is None:
            return False
        return sum(self._app.lag(tp) or 0 for tp in self._app.consumer.assignment() if tp.topic == self._topic) > self._most
