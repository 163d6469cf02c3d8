"""The consumer of record batches, without a broker."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.types import TP

from streams.app import make_app
from streams.batches import BatchConsumer
from streams.settings import Settings

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
