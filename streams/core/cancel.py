"""Ending tasks, threads and consumers for certain: what is asked to end is asked again until it has."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

AGAIN_S = 2.0
P = ParamSpec("P")
T = TypeVar("T")


async def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, but who is cancelled waits for the thread: it would go on, and write what is old by then behind what is newer."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # the same again
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # of no interest any more
        raise


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks, and wait until they have ended. A library that lets a cancellation pass is told again."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)


async def stop(consumer: Any) -> None:
    """Stop an aiokafka consumer.

    Its fetcher lets a cancellation pass while it waits for fetches of an earlier assignment (aiokafka 0.14, `_fetch_requests_routine`),
    and `stop` then waits for it for ever: a worker that stopped restoring just there stood still, and so did its place in the group.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    done, _ = await asyncio.wait([stopping], timeout=AGAIN_S)
    if not done:
        await end([stopping])
    if not stopping.cancelled():
        stopping.result()
