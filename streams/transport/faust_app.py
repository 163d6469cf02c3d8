"""The Faust app: its settings, topics and agents. What there is, nothing that happens."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from streams.core.settings import Settings
from streams.transport.broker_settings import for_faust
from streams.transport.faust_batches import BatchApp, RecordBatch

log = logging.getLogger("currents.app")
LONGEST_STALL_S = 30 * 86_400.0
"""A worker whose encoder fails fetches nothing meanwhile. After this time it would leave the group, and join again only once it fetches."""
HEARTBEAT_S = 0.5
"""A worker hears of a rebalance at its next heartbeat; until then the tablets of one that left have nobody."""
Finish = asyncio.Task[list[RecordBatch]]
"""Gives the batches that may be acked: not those of a passed generation."""
Handle = Callable[[list[RecordBatch]], Awaitable[Finish]]
"""Does what some batches ask for, in order. Once it returns the next ones may be handled, while what is left to do for these is under way."""


def first(error: BaseException) -> BaseException:
    """Of a group of errors, and of groups in it, the first."""
    return first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def nothing() -> Finish:
    """Nothing is left to do, and nothing may be acked."""

    async def none() -> list[RecordBatch]:
        return []

    return asyncio.create_task(none())


def make_app(settings: Settings, url: str) -> BatchApp:
    """A Faust app of these settings; `url` is where other workers reach this one, and tells it apart from them."""
    k, w = settings.kafka, settings.worker
    folder = Path(w.data_dir) / "faust"
    folder.mkdir(parents=True, exist_ok=True)
    app = BatchApp(
        w.prefix,
        broker=[f"kafka://{address.strip()}" for address in k.bootstrap.split(",")],
        broker_credentials=for_faust(k),
        broker_session_timeout=w.session_timeout_s,
        broker_heartbeat_interval=min(HEARTBEAT_S, w.session_timeout_s / 4),
        broker_rebalance_timeout=max(w.session_timeout_s, 6.0),
        broker_commit_interval=w.commit_interval_s,
        broker_max_poll_records=w.max_poll_records,
        broker_max_poll_interval=LONGEST_STALL_S,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=w.instance or None,
        consumer_max_fetch_size=4 << 20,
        consumer_metadata_max_age_ms=30_000,  # until a topic that was missing is noticed
        producer_acks=-1,
        producer_max_batch_size=512 << 10,
        producer_max_request_size=24 << 20,
        stream_buffer_maxsize=2,  # batches in flight: more would be fetched ahead in tiny ones, and throughput collapses
        stream_wait_empty=False,  # Tablets.freeze waits for what is in flight, and only for that
        table_standby_replicas=0,
        topic_allow_declare=False,
        topic_disable_leader=True,
        store="memory://",
        cython_optimizations=True,
        web_enabled=False,
        canonical_url=url,
        datadir=folder,
        autodiscover=False,
    )
    app.linger_ms, app.out_of_range = w.linger_ms, k.out_of_range
    if k.isolation == "read_committed":
        app.committed_topics = {topic for p in settings.platforms for topic in (p.topic, p.items_topic) if topic}
    return app


def add_agent(app: BatchApp, topic: str, name: str, handle: Handle, max_records: int, linger_s: float = 0.0) -> None:
    """An agent that hands the record batches of a topic to `handle`, all that wait at once, and acks them afterwards. An exception crashes the app.

    While one lot is handled the next gathers, up to `max_records`: so lots grow with the backlog and shrink after it. They begin no faster than
    every `linger_s`, since each costs the same again whatever is in it. At most two are under way, one that is handled and one that is finished;
    acks keep their order.
    """

    async def run(stream: Any) -> None:
        waiting: list[Any] = []
        changed = asyncio.Condition()

        async def acked(events: list[Any], finish: Finish) -> None:
            try:
                done = await finish
            finally:
                finish.cancel()
            for event in events:
                if event.message in done:
                    event.ack()

        async def work(finishing: asyncio.TaskGroup) -> None:
            before: asyncio.Task[None] | None = None
            due = 0.0
            while True:
                async with changed:
                    await changed.wait_for(lambda: waiting)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = time.monotonic() + linger_s
                async with changed:
                    events, waiting[:] = waiting[:], []
                    changed.notify_all()
                finish = await handle([e.message for e in events])
                try:
                    if before is not None:
                        await before
                except BaseException:
                    finish.cancel()
                    raise
                before = finishing.create_task(acked(events, finish))

        async def guarded() -> None:
            try:
                async with asyncio.TaskGroup() as finishing:
                    await work(finishing)
            except* Exception as errors:
                error = first(errors)
                log.error("%s: %s", name, error)
                await app.crash(error)

        worker = asyncio.create_task(guarded())
        try:
            async for event in stream.noack().events():
                async with changed:
                    await changed.wait_for(lambda: sum(len(e.message.value) for e in waiting) < max_records)
                    waiting.append(event)
                    changed.notify_all()
        finally:
            worker.cancel()

    app.agent(app.batch_topic(topic), name=name)(run)
