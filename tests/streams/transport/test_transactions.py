"""Producers with transactions: on a platform's topic, where they count, and on Currents' own, where nobody waits for them."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaProducer

from schemas.events import decode_event
from streams.core.settings import Settings
from streams.demo.live import settled
from streams.processes.archiver import Archiver
from streams.processes.worker import running
from streams.transport.clients import extent
from testkit.cluster import RIGHT, Cluster
from testkit.live import wait
from testkit.load import event_row

pytestmark = pytest.mark.kafka
ROWS = 24  # 20 events, and a tombstone in each partition of the items


async def begun(cluster: Cluster, name: str) -> AIOKafkaProducer:
    """A producer whose transaction has begun."""
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, transactional_id=f"{cluster.prefix}-{name}")
    await producer.start()
    await producer.begin_transaction()
    return producer


async def rows(producer: AIOKafkaProducer, topic: str, users: list[str], partitions: int) -> None:
    for n, user in enumerate(users):
        await producer.send_and_wait(topic, event_row(user, n), partition=n % partitions)


def unified(cluster: Cluster) -> list[str]:
    return sorted(decode_event(r.value).user_id for r in cluster.log("events"))


def archived(settings: Settings) -> int:
    """How many records an archiver finds, up to the end."""
    one = Archiver(settings)
    one.claim()
    return one.run(lambda: False, once=True)


@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_platform(cluster: Callable[..., Cluster], bootstrap: str, isolation: str) -> None:
    """Committed transactions are folded once they end, aborted ones never; markers are neither lost batches nor lag. Uncommitted: all, at once."""
    c = cluster(query={"port": 0}, kafka={"bootstrap": bootstrap, "isolation": isolation})
    topic, committed = f"{c.prefix}.in.shop", isolation == "read_committed"

    async def scenario() -> None:
        async with running(c.settings) as worker:
            for n in range(4):
                one, other = await begun(c, "one"), await begun(c, "other")
                for _ in range(2):
                    await rows(one, topic, [f"kept{n}"] * 6, c.partitions)
                    await rows(other, topic, [f"aborted{n}"] * 6, c.partitions)
                await one.commit_transaction()
                await other.abort_transaction()
                for producer in (one, other):
                    await producer.stop()
            late = await begun(c, "late")
            await rows(late, topic, ["late"] * 8, c.partitions)
            async with AIOKafkaProducer(bootstrap_servers=c.bootstrap) as plain:
                await rows(plain, topic, ["behind"] * 8, c.partitions)
            expected = [f"kept{n}" for n in range(4) for _ in range(12)]
            if not committed:
                expected += ["late", "behind"] * 8 + [f"aborted{n}" for n in range(4) for _ in range(12)]
            await folded(sorted(expected))
            await wait(worker, lambda: worker.backlog.records() == 0)
            await late.commit_transaction()
            await late.stop()
            if committed:
                expected += ["late", "behind"] * 8
            await folded(sorted(expected))
            await wait(worker, lambda: worker.backlog.records() == 0)
            await settled(worker)
            assert (worker.app.consumer.holes_reread, worker.app.lost_batches) == (0, 0)

    async def folded(users: list[str]) -> None:
        for _ in range(300):
            found = await asyncio.to_thread(unified, c)
            if found == users:
                return
            assert set(found) <= set(users)
            await asyncio.sleep(0.1)
        assert found == users

    asyncio.run(scenario())
    assert c.check(c.folder / "data") == RIGHT


def test_own_topics(cluster: Callable[..., Cluster]) -> None:
    """An open transaction on Currents' own topics holds up no worker, no restore and no archiver, and its end neither."""
    c = cluster(query={"port": 0}, archive={"url": "unset"})
    settings = c.settings.model_copy(update={"archive": c.settings.archive.model_copy(update={"url": str(c.folder / "archive")})})
    foreign = [settings.topic(name) for name in ("events", "windows", "profiles", "item-vectors")]

    async def scenario() -> None:
        open_one = await begun(c, "foreign")
        for topic in foreign:
            for p in range(c.partitions):
                await open_one.send_and_wait(topic, b"no event" if topic == foreign[0] else None, key=b"nobody", partition=p)
        async with running(settings) as worker, AIOKafkaProducer(bootstrap_servers=c.bootstrap) as plain:
            await wait(worker, worker.ready)
            await rows(plain, f"{c.prefix}.in.shop", [f"u{n}" for n in range(20)], c.partitions)
            await settled(worker)
            assert await asyncio.to_thread(archived, settings) == ROWS
            await open_one.abort_transaction()
            await rows(plain, f"{c.prefix}.in.shop", [f"u{n}" for n in range(20)], c.partitions)
            await settled(worker)
            await wait(worker, lambda: worker.backlog.records() == 0)
        await open_one.stop()

    asyncio.run(scenario())
    assert extent(settings, foreign)
    assert archived(settings) == 20
