"""Tasks of a process, and when it ends: at a signal, or when one of them fails."""

import asyncio
import signal
from typing import Any

from streams.core.cancel import end


class Tasks:
    """Started tasks, and `failed`, which holds the first one's exception."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started: list[asyncio.Task[Any]] = []

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        """A task whose failure is that of the process."""
        task = asyncio.get_running_loop().create_task(coroutine)

        def done(task: "asyncio.Task[Any]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.fail(error)

        task.add_done_callback(done)
        self._started.append(task)
        return task

    def fail(self, error: BaseException) -> None:
        """The process ends, for this reason if there is no earlier one."""
        if not self.failed.done():
            self.failed.set_exception(error)

    async def stop(self) -> None:
        """Cancel what still runs, and wait for it."""
        await end(self._started)


def signalled() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on: also while a process still starts."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def until(stop: asyncio.Event, failed: "asyncio.Future[None]") -> None:
    """Wait for the event. Raises what is in `failed` where that comes first."""
    failed.add_done_callback(lambda _: stop.set())
    await stop.wait()
    if failed.done():
        await failed
