"""What a process makes sure of when it starts."""

import asyncio
import gc
import sys

from streams.startup import COLLECT, SWITCH_S, frozen, tuned


def test_tuned() -> None:
    """Threads take turns often and what is loaded is frozen once the process is ready; afterwards everything is as before."""
    before = sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()
    ready: list[bool] = []

    async def scenario() -> None:
        task = asyncio.create_task(frozen(lambda: bool(ready)))
        await asyncio.sleep(0.3)
        assert gc.get_freeze_count() == before[2]
        ready.append(True)
        await task
        assert gc.get_freeze_count() > 10_000

    with tuned():
        assert abs(sys.getswitchinterval() - SWITCH_S) < 1e-5
        assert gc.get_threshold() == COLLECT
        asyncio.run(scenario())
    assert (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count()) == before
