"""The job in Currents: a whole worker with portraits switched off."""

import asyncio
import sys
from typing import Any

import numpy as np
import uvloop

from benchmarks.common import ITEMS, item, platform, send, working
from benchmarks.systems.job import Clock, Spec, Stub, read_spec
from streams.core.settings import Settings
from streams.releases.routing import Lineup
from streams.transport.topics import asking, create


def settings_of(spec: Spec) -> Settings:
    """Return the run's settings, with defaults for the rest."""
    values: dict[str, Any] = {
        "kafka": {"bootstrap": spec.bootstrap},
        "worker": {"prefix": spec.prefix, "partitions": spec.partitions, "data_dir": spec.folder},
        "query": {"port": 0},
        "platforms": [platform(spec.prefix)],
        "portrait": {"interests": 0},
        "encoding": {"encoder": spec.model or "baseline", "device": "cpu"},
    }
    return Settings(**values)


async def prepare(spec: Spec) -> None:
    """Run a worker before the events are sent. The worker makes the item vectors, which are saved for the other systems."""
    settings = settings_of(spec)
    with asking(settings.kafka) as client:
        await asyncio.to_thread(create, client, settings, True)
    await send(settings, settings.platforms[0].items_topic, ((f"i{n}".encode(), item(n)) for n in range(ITEMS)))
    async with working(settings) as worker:
        table = worker.store.table
        np.savez(spec.items, keys=table.keys[1 : table.size], vectors=table.vectors[1 : table.size], space=worker.store.space_id)


async def run(spec: Spec) -> None:
    """Run the measured worker, which catches up with all events."""
    clock = Clock(spec.events)
    async with working(settings_of(spec)) as worker:
        if not spec.model:
            worker.lifecycle.swapper.lineup = Lineup(Stub())
        while not clock.count(int(worker.metrics.value("currents_folded_total")) - clock.done):
            if worker.failed.done():
                await worker.failed
            await asyncio.sleep(0.005)
    clock.tell()


if __name__ == "__main__":
    uvloop.run((prepare if sys.argv[2:] == ["prepare"] else run)(read_spec(sys.argv[1])))
