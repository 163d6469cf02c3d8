"""The encoding thread of a worker. Live events and recomputed users take turns on it."""

import asyncio
from concurrent.futures import Executor
from typing import Any

from streams.profile.encoder_guard import EncoderDown
from streams.state.tablets import Tablets


class EncodingThread:
    """Owns the turns on the encoding thread. `pool` has exactly one thread."""

    def __init__(self, pool: Executor, tablets: Tablets) -> None:
        self._pool, self._tablets = pool, tablets
        self.turn = asyncio.Lock()
        """Held while the rows of one batch of live events, or of one chunk of recomputed users, are made. Waiters acquire it in order, so live events
        wait for at most one chunk."""

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Call the function on the thread and return its result. Raises the function's errors."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def run_patiently(self, function: Any, *arguments: Any) -> Any:
        """As `run`, but retry while the encoder fails; later batches wait meanwhile. Returns None once the consumer group's generation has passed."""
        generation = self._tablets.generation
        while True:
            try:
                return await self.run(function, *arguments)
            except EncoderDown as down:
                if not await self._tablets.wait_within_generation(generation, down.wait_s):
                    return None

    def submit(self, function: Any, *arguments: Any) -> None:
        """Queue a function and discard its result."""
        self._pool.submit(function, *arguments)
