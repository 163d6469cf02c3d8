"""Tasks of a process: when one of them fails, the process ends."""

import asyncio
from typing import Any

from streams.stopping import end


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
