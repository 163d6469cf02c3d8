"""The consumer of record batches, without a broker."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.types import TP

from streams.core.settings import Settings
from streams.transport.faust_app import make_app
from streams.transport.faust_batches import BatchConsumer, topics_known

HERE = TP("t", 0)


async def nothing(*_: Any) -> None:
    pass


class Taken(BatchConsumer):
    """Its only partition is taken away while records of it are on their way."""

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        if self.stops:
            self.stop_flow()
        return {HERE: [SimpleNamespace(offset=9, timestamp=0)]}, None

    async def seek_to_committed(self) -> Any:
        return await self._seek(HERE, 7)

    async def _seek(self, partition: TP, offset: int) -> None:
        state = SubscriptionState()
        state.subscribe({partition.topic})
        if self.rejoining:
            state.assign_from_subscribed(set())
        state.seek(partition, offset)


@pytest.mark.parametrize("rejoining", [False, True])
@pytest.mark.parametrize("where", ["stopped", "hole", "lost"])
def test_taken(tmp_path: Path, where: str, rejoining: bool) -> None:
    """Partitions that are taken away just before they are sought hand nothing out, and the worker lives."""

    async def scenario() -> None:
        app = make_app(Settings(worker={"data_dir": str(tmp_path)}), "http://127.0.0.1:1")
        consumer = Taken(app.transport, callback=nothing, on_partitions_revoked=nothing, on_partitions_assigned=nothing)
        consumer.stops, consumer.rejoining = where == "stopped", rejoining
        consumer._due[HERE] = consumer._handled[HERE] = 7
        if where == "lost":
            consumer._lost.add(HERE)
        assert [batch async for batch in consumer.getmany(0)] == []

    asyncio.run(scenario())


@pytest.mark.parametrize(("answers_without", "asked"), [(0, 1), (3, 4)])
def test_broker_that_knows_no_topics_yet(answers_without: int, asked: int) -> None:
    """Partitions are handed out once a broker that came back has named all topics, and not before."""
    cluster, answers = ClusterMetadata(), list[int]()

    async def update() -> None:
        answers.append(len(answers))
        topics = [(0, name, False, [(0, p, 0, [0], [0]) for p in range(2)]) for name in ("a", "b")]
        some = topics if len(answers) > answers_without else topics[:1]
        cluster.update_metadata(SimpleNamespace(API_VERSION=1, brokers=[(0, "h", 1, None)], controller_id=0, topics=some))

    asyncio.run(topics_known(SimpleNamespace(cluster=cluster, force_metadata_update=update), {"a", "b"}, 60))
    assert len(answers) == asked
    assert cluster.partitions_for_topic("b") == {0, 1}


def test_topic_that_never_comes() -> None:
    """A topic that is missing for good is not waited for without end."""
    asyncio.run(topics_known(SimpleNamespace(cluster=ClusterMetadata(), force_metadata_update=nothing), {"a"}, 0.3))
