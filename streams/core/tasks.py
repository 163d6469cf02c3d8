"""Tasks of a process. The process ends at a signal or when a task fails."""

import asyncio
import signal
from typing import Any

from streams.core.cancel import end


class Tasks:
    """Owns the tasks of a process, and the future `failed`, which holds the first failure."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started: list[asyncio.Task[Any]] = []

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Start a task. If the task fails, the process fails."""
        task = asyncio.get_running_loop().create_task(coroutine)

        def done(task: "asyncio.Task[Any]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.fail(error)

        task.add_done_callback(done)
        self._started.append(task)
        return task

    def fail(self, error: BaseException) -> None:
        """Fail the process with this error, unless it has already failed."""
        if not self.failed.done():
            self.failed.set_exception(error)

    async def stop(self) -> None:
        """Cancel the running tasks and wait until they have ended."""
        await end(self._started)


def signalled() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set from now on. Call it before the start-up, so that a signal during it counts."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def until(stop: asyncio.Event, failed: "asyncio.Future[None]") -> None:
    """Wait for the event. Raises the exception of `failed` if that comes first."""
    failed.add_done_callback(lambda _: stop.set())
    await stop.wait()
    if failed.done():
        await failed
