"""Batches that Faust loses between fetch and ack are read again; provoked here in the ways that a rebalance does it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from streams.demo.live import settled
from streams.processes.worker import Worker, running
from testkit.cluster import RIGHT, WAIT_S, Cluster, Load
from testkit.memory_kafka import queued

pytestmark = pytest.mark.kafka
Provoke = Callable[[Worker], Awaitable[None]]
JUMPED: dict[tuple[int, object], int] = {}
"""Consumer and partition -> where it was made to jump last."""


async def clear_queues(worker: Worker) -> None:
    """As Faust's recovery does on `flow_control.resume`: whatever was queued for the agents is gone. Tablets are held until something is."""
    flow = worker.app.flow_control
    async with contextlib.AsyncExitStack() as held:
        for tablet in sorted(worker.tablets, key=lambda t: t.partition):
            await held.enter_async_context(tablet.lock)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while not queued(flow._queues):
                    await asyncio.sleep(0.01)
        flow.suspend()
        await asyncio.sleep(0.3)
        flow.resume()


async def jump_ahead(worker: Worker) -> None:
    """As a fetch of the old generation does: the position moves on past records that nobody got. Once a place: a hole that stays is real."""
    consumer = worker.app.consumer
    for tp in consumer.assignment():
        if tp.topic == worker.settings.topic("events") and (due := consumer._due.get(tp)) is not None:
            if JUMPED.get((id(consumer), tp)) == due:
                continue
            JUMPED[id(consumer), tp] = due
            await consumer._seek(tp, due + 20)


async def stop_flow(worker: Worker) -> None:
    """As a rebalance does in the middle of a fetch."""
    consumer = worker.app.consumer
    consumer.stop_flow()
    await asyncio.sleep(0.3)
    consumer.resume_flow()


@pytest.mark.parametrize(
    ("provoke", "counter"), [(clear_queues, "lost_batches"), (jump_ahead, "holes_reread"), (stop_flow, None)], ids=["queues", "hole", "flow"]
)
def test_nothing_is_lost(cluster: Callable[..., Cluster], provoke: Provoke, counter: str | None) -> None:
    """Whatever goes missing in front of an ack is read again, from the very first batch of a group on."""
    c = cluster(query={"port": 0}, worker={"max_poll_records": 200, "commit_interval_s": 1000.0})

    async def scenario() -> None:
        async with running(c.settings) as worker:
            load = Load(c, events=12_000, rate=3000)
            while load.is_alive():
                await provoke(worker)
                await asyncio.sleep(0.2)
            async with asyncio.timeout(WAIT_S):
                await settled(worker)
            if counter:
                assert getattr(worker.app.consumer, counter) > 0

    asyncio.run(scenario())
    assert c.check(c.folder / "data") == RIGHT
