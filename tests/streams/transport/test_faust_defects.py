"""What Faust 0.15.3 loses around rebalances: each shown on Faust as it is, then held against by our record batches.

Everything is Faust's own but the Kafka client (`testkit/memory_kafka.py`). When one of these fails for "stock", Faust has mended that defect, and
what holds against it in `streams/transport/faust_batches.py` can go.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiokafka
import faust
import pytest
from faust.types import TP

from streams.core.settings import Settings
from streams.transport.agents import Finish, add_agent
from streams.transport.faust_app import make_app
from testkit.memory_kafka import Kafka, Producer, queued, until

FIRST = 3  # what was committed before


class Worker:
    """Faust or ours, with an agent that stands at the first message until it is released."""

    def __init__(self, app: Any, kafka: Kafka, room: int) -> None:
        self.app, self.kafka, self.room = app, kafka, room
        self.seen: list[int] = []
        self.released = asyncio.Event()

    async def handle(self, offsets: list[int]) -> None:
        """An agent's work."""
        self.seen += offsets
        await self.released.wait()

    def waiting(self) -> int:
        """Messages between fetch and agent."""
        return queued(self.app.flow_control._queues)

    async def lost(self) -> set[int]:
        """Let the agent go on, and what it never gets though it gets what comes after."""
        k = self.kafka
        self.released.set()
        last, k.end = k.end, k.end + 1
        await until(lambda: last in self.seen, "what came after")
        begun = k.idle
        await until(lambda: k.idle > begun + 20 and not self.waiting(), "the agent to have all")
        missing = set(range(k.committed or 0, k.end)) - set(self.seen)
        await self.app.consumer.commit()
        return missing


def stock(app: Any, worker: Worker) -> None:
    """Faust's stream of messages."""

    async def agent(stream: Any) -> None:
        async for event in stream.events():
            await worker.handle([event.message.offset])

    app.agent(app.topic("t", value_type=bytes, value_serializer="raw"))(agent)


def ours(app: Any, worker: Worker) -> None:
    """Our record batches, one at a time."""

    async def finish(batches: list[Any]) -> list[Any]:
        return [b for b in batches if b.generation_id == app.consumer_generation_id]

    async def handle(batches: list[Any]) -> Finish:
        await worker.handle([r.offset for b in batches for r in b.value])
        return asyncio.create_task(finish(batches))

    add_agent(app, "t", "agent", handle, 1)


@contextlib.asynccontextmanager
async def at_work(kafka: Kafka, agent: Callable[[Any, Worker], None], folder: Path, fetch: int) -> AsyncIterator[Worker]:
    """A started worker whose agent is one of the above."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiokafka, "AIOKafkaConsumer", kafka.consumer)
        patch.setattr(aiokafka, "AIOKafkaProducer", Producer)
        if agent is stock:
            patch.setattr("streams.transport.faust_app.BatchApp", faust.App)
        worker_settings = {"data_dir": str(folder), "max_poll_records": fetch, "commit_interval_s": 1000.0}
        app = make_app(Settings(worker=worker_settings), "http://127.0.0.1:1")
        worker = Worker(app, kafka, 1 if agent is stock else 3)
        agent(app, worker)
        app.finalize()
        started = asyncio.create_task(app.start())  # ends after the first generation
        try:
            yield worker
        finally:
            worker.released.set()
            await app.stop()
            await started


Scenario = Callable[[Worker], Awaitable[None]]


async def given_partition(worker: Worker) -> None:
    """A worker that had none gets one: its flow was never stopped, so it fetches before it has sought."""
    k = worker.kafka
    await until(lambda: k.client and k.client.listener, "the subscription")
    await k.rebalance(False)
    await until(lambda: worker.app._fetcher.started, "the first generation to be over")
    await k.rebalance(True)


async def stops_in_a_fetch(worker: Worker) -> None:
    """Records of one fetch are being handed out when the flow stops and the queues are cleared; it goes on behind them."""
    await given_partition(worker)
    await until(lambda: worker.seen and worker.waiting() >= 2 and worker.kafka.sought, "a fetch to be handed out")
    await until(lambda: not worker.app.rebalancing, "the rebalance to end")
    worker.app.consumer.stop_flow()
    worker.app.flow_control.suspend()
    worker.app.flow_control.clear()
    await asyncio.sleep(0.1)
    worker.app.flow_control.resume()
    worker.app.consumer.resume_flow()


async def fetched_before_the_seek(worker: Worker) -> None:
    """A fetch from before the seek to the committed offset arrives after it."""
    k = worker.kafka
    k.seek.clear()
    await given_partition(worker)
    await until(lambda: worker.seen, "the agent to begin")
    k.deliver.clear()
    taken = k.taken
    k.end += 3
    await until(lambda: k.taken > taken, "the next fetch")
    k.seek.set()
    await until(lambda: not worker.app.rebalancing, "the rebalance to end")
    k.deliver.set()


async def queued_before_the_clearing(worker: Worker) -> None:
    """Messages reach the agent's queue after the seek and before Faust clears all queues."""
    k = worker.kafka
    k.fetch.clear()
    k.answer.clear()
    await given_partition(worker)
    await until(lambda: k.sought, "the seek")
    k.fetch.set()
    await until(lambda: worker.seen and worker.waiting() == 2, "messages in the queue")
    k.answer.set()
    await until(lambda: not worker.app.rebalancing, "the rebalance to end")


async def before_the_first_commit(worker: Worker) -> None:
    """Messages reach the queue before the seek, and there is no committed offset to seek to."""
    k = worker.kafka
    k.committed, k.end = None, worker.room + 2
    k.seek.clear()
    await given_partition(worker)
    await until(lambda: worker.seen and worker.waiting() == 2, "messages in the queue")
    k.seek.set()
    await until(lambda: not worker.app.rebalancing, "the rebalance to end")


@pytest.mark.parametrize("agent", [stock, ours])
@pytest.mark.parametrize(
    ("scenario", "fetch", "records", "committed"),
    [
        (stops_in_a_fetch, 10, 100, False),
        (fetched_before_the_seek, 2, 5, True),
        (queued_before_the_clearing, 1, 12, True),
        (before_the_first_commit, 1, 0, False),
    ],
)
def test_lost(tmp_path: Path, scenario: Scenario, fetch: int, records: int, committed: bool, agent: Callable[[Any, Worker], None]) -> None:
    """Faust never hands out some records and goes on behind them, its commit passing them by or standing still; record batches hand out all."""
    kafka = Kafka("t", records, FIRST)

    async def run() -> set[int]:
        async with at_work(kafka, agent, tmp_path, fetch) as worker:
            await scenario(worker)
            return await worker.lost()

    lost = asyncio.run(run())
    if agent is ours:
        assert not lost
        assert kafka.committed == kafka.end
    else:
        assert lost, "Faust has mended this"
        assert (kafka.committed == kafka.end) == committed


@pytest.mark.parametrize("agent", [stock, ours])
def test_seeks(tmp_path: Path, agent: Callable[[Any, Worker], None]) -> None:
    """Faust seeks on the app's thread, where aiokafka's fetcher is at work on another: a KeyError of its buffers ended a worker. Ours does not."""
    kafka = Kafka("t", 5, FIRST)

    async def run() -> None:
        async with at_work(kafka, agent, tmp_path, 1) as worker:
            await given_partition(worker)
            await until(lambda: worker.seen and not worker.app.rebalancing, "the agent to begin")
            kafka.seeks.clear()
            await worker.app.consumer.seek(TP("t", 0), 4)

    asyncio.run(run())
    assert kafka.seeks == [agent is ours]
