"""Agents: what Faust hands to our functions, a whole lot of record batches at once, and what it may ack afterwards."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from streams.transport.faust_batches import BatchApp, RecordBatch

log = logging.getLogger("currents.app")
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
