"""Stops tasks, threads and consumers reliably: a cancellation is repeated until the task has ended."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

AGAIN_S = 2.0
P = ParamSpec("P")
T = TypeVar("T")


async def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, but a cancelled caller waits for the thread. Otherwise the thread could overwrite newer rows with older ones."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # a further cancellation
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # marks the exception as retrieved
        raise


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks and wait until they have ended. Repeats the cancellation, because libraries sometimes swallow it."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)


async def stop(consumer: Any) -> None:
    """Stop an aiokafka consumer.

    The consumer's fetcher swallows a cancellation while it waits for fetches of an earlier assignment (aiokafka 0.14, `_fetch_requests_routine`).
    `consumer.stop` then waits for the fetcher forever. Without this function a worker hung, and kept its membership in the group, if it stopped a
    restore at that moment.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    done, _ = await asyncio.wait([stopping], timeout=AGAIN_S)
    if not done:
        await end([stopping])
    if not stopping.cancelled():
        stopping.result()
