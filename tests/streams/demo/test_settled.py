"""The demo counts once a worker is done, by what the brokers say: what the worker knows of a topic's end can be a fetch old."""

import asyncio
from pathlib import Path

import pytest

from streams.demo.live import settled
from streams.processes.worker import running
from testkit.live import events, settings_of, windows_wrong

pytestmark = pytest.mark.broker
USERS, ROUNDS = 400, 3


def test_everything_is_folded(bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was sent is in the windows, and acked, once a worker is said to be done with it, also if its fetches have not heard of it yet."""
    settings = settings_of(bootstrap, tmp_path, worker={"linger_ms": 1000.0})

    async def scenario() -> None:
        async with running(settings) as worker:
            monkeypatch.setattr(worker.app, "lag", lambda tp: 0)
            for n in range(1, ROUNDS + 1):
                await events(settings, [f"u{k}" for k in range(USERS)], f"round-{n}")
                await settled(worker)
                assert worker.metrics.value("currents_folded_total") == n * USERS
                assert await windows_wrong(settings) == 0

    asyncio.run(scenario())
