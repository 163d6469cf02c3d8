"""Under load late items wait: what is shed first is the encoding of users who have no event of their own."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from encoder.base import Encoder
from encoder.features import Features, ItemTable
from streams.processes.backlog import OVERLOADED_SHARE
from streams.processes.worker import running
from streams.releases.routing import Lineup
from testkit.live import events, items, profiles, settings_of, wait, windows_wrong

pytestmark = pytest.mark.broker
WAITING, FLOOD, BATCH = 900, 12_000, 400


class Slow:
    """The encoder that a worker has, taking longer for each call."""

    def __init__(self, encoder: Encoder) -> None:
        self._real, self.takes_s = encoder, 0.0
        self.version, self.space_id, self.dims, self.max_len = encoder.version, encoder.space_id, encoder.dims, encoder.max_len
        self.projected = encoder.projected

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        time.sleep(self.takes_s)
        return self._real.encode(features, table)

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return self._real.project(vectors, keys)


def test_late_items_wait(bootstrap: str, tmp_path: Path) -> None:
    """Users of an item that comes during a storm are encoded again only when few live events wait, and then all of them."""
    settings = settings_of(bootstrap, tmp_path, worker={"max_poll_records": BATCH})

    async def scenario() -> None:
        async with running(settings) as worker:
            slow = Slow(worker.encoder)
            worker.lifecycle.swapper.lineup = Lineup(slow)
            value = worker.metrics.value
            await items(settings)
            await wait(worker, lambda: worker.store.table.size > 10)
            await events(settings, [f"w{n}" for n in range(WAITING)], "waiting", item="late")
            await wait(worker, lambda: value("currents_folded_total") == WAITING and not worker.backlog.records())
            slow.takes_s = 0.5  # so that the storm lasts until the item has come
            await events(settings, [f"u{n % 500}" for n in range(FLOOD)], "flood")
            await wait(worker, lambda: value("currents_events_total") == WAITING + FLOOD and worker.backlog.overloaded())
            await items(settings, ["late"])
            await wait(worker, lambda: worker.late.pending() > 0)
            assert worker.backlog.overloaded()
            slow.takes_s = 0.1
            lags: list[tuple[float, float]] = []  # (records that waited, users encoded again since the look before)
            before = 0.0
            while value("currents_reencoded_total") < WAITING:
                now = value("currents_reencoded_total")
                lags.append((worker.backlog.records(), now - before))
                before = now
                if worker.failed.done():
                    await worker.failed
                await asyncio.sleep(0.02)
            assert sum(1 for lag, _ in lags if lag > BATCH) > 10
            assert all(not again for lag, again in lags if lag > BATCH / OVERLOADED_SHARE)
            slow.takes_s = 0.0
            await wait(worker, lambda: not worker.backlog.records())
        assert not any(p.unknown_items for p in (await profiles(settings)).values())
        assert await windows_wrong(settings) == 0

    asyncio.run(scenario())
