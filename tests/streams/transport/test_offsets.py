"""Logs that do not have the offset that the group has come to: restored, made anew, overtaken by retention, with more partitions."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest
from kafka import TopicPartition
from kafka.admin import NewTopic
from kafka.structs import OffsetAndMetadata

from schemas.events import decode_event
from streams.core.errors import BrokerError
from streams.demo.live import settled
from streams.processes.worker import Worker, running
from streams.transport.topics import asking
from testkit.cluster import RIGHT, Cluster, wait_for
from testkit.live import wait
from testkit.load import event_row

pytestmark = pytest.mark.kafka


def source(c: Cluster) -> str:
    return c.settings.platforms[0].topic


def send(c: Cluster, users: Iterable[str]) -> None:
    c.send(source(c), [event_row(user) for user in users])


def unified(c: Cluster) -> list[str]:
    return sorted(decode_event(r.value).user_id for r in c.log("events"))


async def folded(c: Cluster, worker: Worker, users: Iterable[str]) -> None:
    """Wait until every one of these users has an event in the unified topic."""
    while not set(users) <= set(await asyncio.to_thread(unified, c)):
        await wait(worker, lambda: True)
        await asyncio.sleep(0.2)
    await settled(worker)


def session(c: Cluster, work: Callable[[Worker], Awaitable[None]]) -> None:
    """A worker that runs as long as `work` does."""

    async def scenario() -> None:
        async with running(c.settings) as worker:
            await work(worker)

    asyncio.run(asyncio.wait_for(scenario(), 120))


def partitions(c: Cluster) -> list[TopicPartition]:
    return [TopicPartition(source(c), p) for p in range(c.partitions)]


def committed(c: Cluster, offset: int) -> None:
    """Let the group, which has no worker, have come to an offset of each partition."""

    def done() -> bool:
        try:
            with asking(c.settings.kafka) as client:
                client.alter_group_offsets(c.prefix, {tp: OffsetAndMetadata(offset, "", -1) for tp in partitions(c)})
        except BrokerError:  # a broker that has just started knows of no groups yet
            return False
        return True

    wait_for("the group's offsets", done)


BEFORE, AFTER = [f"before{n}" for n in range(12)], [f"after{n}" for n in range(12)]


@pytest.mark.parametrize(("where", "found"), [("earliest", BEFORE + AFTER), ("latest", AFTER)])
def test_log_that_ends_before_the_group(cluster: Callable[..., Cluster], bootstrap: str, where: str, found: list[str]) -> None:
    """A restored log is read from its beginning or its end, as the setting says, which is counted; what comes then is folded, and committed."""
    c = cluster(query={"port": 0}, kafka={"bootstrap": bootstrap, "out_of_range": where})
    send(c, BEFORE)
    committed(c, 1000)

    async def work(worker: Worker) -> None:
        await wait(worker, lambda: worker.app.consumer.out_of_range == c.partitions)
        await asyncio.to_thread(send, c, AFTER)
        await folded(c, worker, found)

    session(c, work)
    assert unified(c) == sorted(found)
    assert c.check(c.folder / "data") == RIGHT


def test_stops(cluster: Callable[..., Cluster], bootstrap: str) -> None:
    """A worker that is told to stop ends with one line that names topic, offsets and setting; nothing is committed."""
    c = cluster(query={"port": 0}, kafka={"bootstrap": bootstrap, "out_of_range": "stop"})
    committed(c, 1000)

    async def work(worker: Worker) -> None:
        with pytest.raises(BrokerError, match=rf"{source(c)}/\d: its log has offsets 0 to 0, but the group has come to 1000"):
            await worker.failed

    session(c, work)
    with asking(c.settings.kafka) as client:
        assert {o.offset for o in client.list_group_offsets({c.prefix: partitions(c)})[c.prefix].values()} == {1000}


def test_topic_made_anew_and_widened(cluster: Callable[..., Cluster]) -> None:
    """A running worker reads a topic that was deleted and made anew from its beginning, and takes the partitions that it gets later."""
    c = cluster(query={"port": 0})
    send(c, BEFORE)

    async def refreshed(worker: Worker) -> None:  # else what is new is noticed within half a minute
        thread = worker.app.consumer._thread
        await thread.call_thread(thread._consumer._client.force_metadata_update)

    async def work(worker: Worker) -> None:
        await folded(c, worker, BEFORE)
        with asking(c.settings.kafka) as client:
            client.delete_topics([source(c)])
            await asyncio.sleep(1)
            client.create_topics([NewTopic(source(c), c.partitions, 1)])
        await asyncio.to_thread(send, c, ["anew0", "anew1", "anew2", "anew3"])
        await refreshed(worker)
        await folded(c, worker, ["anew0", "anew1", "anew2", "anew3"])
        with asking(c.settings.kafka) as client:
            client.create_partitions({source(c): c.partitions + 2})
        c.partitions += 2
        await asyncio.to_thread(send, c, [f"wide{n}" for n in range(c.partitions)])
        await refreshed(worker)
        await folded(c, worker, [f"wide{n}" for n in range(c.partitions)])

    session(c, work)
    c.partitions -= 2
    assert set(unified(c)) == {*BEFORE, *(f"anew{n}" for n in range(4)), *(f"wide{n}" for n in range(6))}


def test_retention_overtakes(cluster: Callable[..., Cluster], caplog: pytest.LogCaptureFixture) -> None:
    """A worker that stood still while its events were deleted goes on with the oldest that is left, and says how many it never saw."""
    c = cluster(query={"port": 0})
    send(c, BEFORE)
    session(c, lambda worker: folded(c, worker, BEFORE))
    send(c, [f"gone{n}" for n in range(20)])
    send(c, AFTER)
    with asking(c.settings.kafka) as client:
        client.delete_records(dict.fromkeys(partitions(c), 8))
    session(c, lambda worker: folded(c, worker, AFTER))
    assert set(unified(c)) == {*BEFORE, *AFTER}
    assert caplog.text.count("5 offsets were deleted before they were read") == c.partitions
    assert c.check(c.folder / "data") == RIGHT
