"""The encoding thread of a worker, and whose turn it is: live events, or users whose profiles are recomputed."""

import asyncio
from concurrent.futures import Executor
from typing import Any

from streams.profile.encoder_guard import EncoderDown
from streams.state.tablets import Tablets


class EncodingThread:
    """Owns the turns on the encoding thread. `pool` has one thread."""

    def __init__(self, pool: Executor, tablets: Tablets) -> None:
        self._pool, self._tablets = pool, tablets
        self.turn = asyncio.Lock()
        """Held while rows are made: of a batch of live events, or of one chunk of recomputed users. Waiters take it in order, so that live events
        wait for one chunk at most."""

    async def run(self, function: Any, *arguments: Any) -> Any:
        """The function's result, computed on the thread. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def run_patiently(self, function: Any, *arguments: Any) -> Any:
        """The same, tried again for as long as the encoder fails: the batch waits, and all batches behind it. None once the generation has passed."""
        generation = self._tablets.generation
        while True:
            try:
                return await self.run(function, *arguments)
            except EncoderDown as down:
                if not await self._tablets.wait_within_generation(generation, down.wait_s):
                    return None

    def submit(self, function: Any, *arguments: Any) -> None:
        """Queue a function whose result nobody waits for."""
        self._pool.submit(function, *arguments)
