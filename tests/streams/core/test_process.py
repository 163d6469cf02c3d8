"""What a process makes sure of when it starts."""

import asyncio
import gc
import sys
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError

from streams.core.errors import BrokerError
from streams.core.process import COLLECT, SWITCH_S, frozen, tuned
from streams.core.settings import Settings
from streams.transport import topics
from streams.transport.topics import prepare


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


class Leaving:
    """A broker that answers once."""

    closed = False

    def __init__(self, **config: Any) -> None:
        pass

    def list_topics(self) -> list[str]:
        raise KafkaConnectionError("socket disconnected")

    def close(self) -> None:
        Leaving.closed = True


def test_broker_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that goes while topics are looked at ends a worker's start with the address and what happened."""
    monkeypatch.setattr(topics, "KafkaAdminClient", Leaving)
    with pytest.raises(BrokerError, match=r"kafka\.bootstrap = 'here:1': answered, and then .*socket disconnected"):
        prepare(Settings(kafka={"bootstrap": "here:1"}))
    assert Leaving.closed
