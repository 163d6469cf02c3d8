"""One consumer, two isolation levels: transactions are waited for on some topics, the others are read to their end.

A fetch request has one level for all its partitions, so that those topics are fetched by requests of their own, on connections of their own: a
broker answers the requests of one connection in turn, and may hold each for a while. To aiokafka's fetcher their leaders are other nodes.
"""

from collections.abc import Collection
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED

GROUP = 2  # of connections; aiokafka's own are 0 and 1


class _Apart(int):
    """A node that is asked for committed records; another one than the node of the same number."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Apart) and int(self) == int(other)

    def __hash__(self) -> int:
        return hash(("apart", int(self)))


class _Client:
    """An aiokafka client that knows these nodes."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node: int, request: Any) -> Any:
        if not isinstance(node, _Apart):
            return await self._client.send(node, request)
        request._isolation_level = READ_COMMITTED
        return await self._client.send(int(node), request, group=GROUP)


def read_committed(consumer: AIOKafkaConsumer, topics: Collection[str]) -> None:
    """Let a consumer that was started read these topics to their last stable offset only. What it fetches is still to be filtered."""
    fetcher = consumer._fetcher
    replica, subscriptions = fetcher._select_read_replica, fetcher._subscriptions

    def node_of(tp: TopicPartition) -> int | None:
        node: int | None = replica(tp)
        if node is None or node < 0 or tp.topic not in topics:
            return node
        positioned = subscriptions.subscription.assignment.state_value(tp).has_valid_position
        return _Apart(node) if positioned else node  # positions are looked up at the leader itself, once at a time

    fetcher._select_read_replica = node_of
    fetcher._client = _Client(fetcher._client)
