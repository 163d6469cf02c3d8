"""What a worker says of itself: a line a minute, and a promotion that it does not follow."""

import asyncio
import logging

import msgspec
import pytest

from streams.core.errors import BrokerError
from streams.core.settings import Encoding, Releases, Settings
from streams.monitoring.metrics import Metrics
from streams.processes import unfollowed
from streams.processes.activity import Activity
from streams.processes.unfollowed import Unfollowed
from streams.releases.release_log import Announced
from tests.schemas.test_codecs import RELEASE


def test_activity(caplog: pytest.LogCaptureFixture) -> None:
    """Each line has what was counted since the line before it."""
    metrics = Metrics()
    activity = Activity(metrics, lambda: 7)
    metrics.received.labels("shop").inc(3)
    metrics.received.labels("news").inc(2)
    metrics.dead.labels("shop", "not-json").inc()
    assert activity.line().startswith("5 records read, 0 events, 0 items, 1 dead letters, 0 events folded, 0 profiles written; 7 records wait; ")
    metrics.received.labels("shop").inc(1000)
    assert activity.line().startswith("1,000 records read, 0 events, 0 items, 0 dead letters")

    async def a_moment() -> None:
        task = asyncio.create_task(activity.tell(0.01))
        while not caplog.records:
            await asyncio.sleep(0.01)
        task.cancel()

    with caplog.at_level(logging.INFO, "currents.worker"):
        asyncio.run(a_moment())
    assert "0 records read" in caplog.records[0].getMessage()


def test_unfollowed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A promotion that is not followed is logged once, and kept as long as it differs; brokers that are away change nothing."""
    history = [Announced(0, "serving", msgspec.structs.replace(RELEASE, state="promoted", version="v2"), "")]
    serves = ["v1"]

    async def read(*_: object) -> list[Announced]:
        if not history:
            raise BrokerError("away")
        return history

    monkeypatch.setattr(unfollowed, "read_history", read)
    looking = Unfollowed(Settings(encoding=Encoding(encoder="bundles/v1")), lambda: serves[0])
    asyncio.run(looking.look())
    asyncio.run(looking.look())
    why = 'encoding.encoder = "bundles/v1" names an encoder; releases.follow = "on" follows promotions all the same'
    said = f"v2 is promoted, this worker serves v1: {why}"
    assert (looking.warning, [r.getMessage() for r in caplog.records]) == (said, [said])
    history.clear()
    asyncio.run(looking.look())
    assert looking.warning == said
    history.append(Announced(0, "serving", msgspec.structs.replace(RELEASE, state="promoted", version="v1"), ""))
    asyncio.run(looking.look())
    assert looking.warning == ""


def test_why_it_is_not_followed() -> None:
    """The settings say why the topic is not followed, and nothing where it is."""
    assert Settings().unfollowed() == ""
    assert Settings(releases=Releases(follow="off")).unfollowed() == 'releases.follow = "off"'
    assert Settings(encoding=Encoding(encoder="b"), releases=Releases(follow="on")).unfollowed() == ""
