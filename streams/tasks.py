"""Tasks of a process: when one of them fails, the process ends."""

import asyncio
from typing import Any


class Tasks:
    """Started tasks, and `failed`, which holds the first one's exception."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started: list[asyncio.Task[Any]] = []

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        """A task whose failure is that of the process."""
        task = asyncio.get_running_loop().create_task(coroutine)

        def done(task: "asyncio.Task[Any]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
                self.failed.set_exception(error)

        task.add_done_callback(done)
        self._started.append(task)
        return task

    async def stop(self) -> None:
        """Cancel what still runs, and wait for it."""
        for task in self._started:
            task.cancel()
        await asyncio.gather(*self._started, return_exceptions=True)
