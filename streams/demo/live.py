"""The demo: an embedded broker, one worker and a synthetic world with drifting tastes, shown live in the terminal."""

import asyncio
import contextlib
import math
import sys
import tempfile
import time
import tomllib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.live import Live

from encoder.baseline import Baseline
from schemas.items import item_name
from streams.audit import windows as verify
from streams.audit.hit_rate import comparable, hits
from streams.core.settings import Settings
from streams.core.tasks import signalled
from streams.demo.embedded_broker import Embedded, started
from streams.demo.screen import draw
from streams.demo.world import World
from streams.processes.worker import Worker, running
from streams.transport.reading import read_topic
from streams.transport.sender import partition_of
from streams.transport.topics import asking, create

TICK_S = 0.02  # interval between bunches of events
SETTLE_S = 120.0  # timeout for handling the remaining records at the end
RANKED_USERS = 1000  # upper bound of users in the hit rate
GIVEN_UP_S = 5.0  # timeout for stopping clients of a broker that has ended
T = TypeVar("T")


@dataclass
class Sent:
    """Owns the counts of sent events, and the time of the first."""

    events: int = 0
    bad: int = 0
    started: float = field(default_factory=time.monotonic)


def demo_settings(bootstrap: str, data_dir: Path) -> Settings:
    """Return the demo's settings: the world's three platforms, and defaults for the rest."""
    values = tomllib.loads((files("streams.demo") / "demo.toml").read_text())
    values |= {"kafka": {"bootstrap": bootstrap}, "worker": {"data_dir": data_dir, "partitions": 4}, "query": {"port": 0}}
    return Settings(**values)


def run_demo(seconds: float | None, as_json: bool, seed: int, rate: float, users: int) -> int:
    """Run until `seconds` have passed or a signal comes. Returns the exit status: 1 if a window is wrong, else 0.

    The last printed line is the result, as JSON if `as_json`.
    """
    with started() as broker, tempfile.TemporaryDirectory(prefix="currents-demo-") as folder:
        settings = demo_settings(broker.address, Path(folder))
        result = asyncio.run(beside(broker, _demo(settings, World(seed, users), seconds, as_json, rate)))
    print(orjson.dumps(result).decode() if as_json else _sentence(result), flush=True)
    return 1 if result["windows_wrong"] else 0


async def beside(broker: Embedded, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` beside a broker and return its result. Cancels the work and raises EmbeddedBrokerError if the broker's process ends first."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(broker.watch())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait((working,), timeout=GIVEN_UP_S)
            await watching
        return working.result()
    finally:
        watching.cancel()


@contextlib.asynccontextmanager
async def producing(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Create the topics and yield a producer."""

    def make() -> None:
        with asking(settings.kafka) as client:
            create(client, settings, True)

    await asyncio.to_thread(make)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap, linger_ms=5, max_batch_size=256 << 10)
    await producer.start()
    try:
        yield producer
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(producer.stop(), GIVEN_UP_S)


async def _demo(settings: Settings, world: World, seconds: float | None, as_json: bool, rate: float) -> dict[str, Any]:
    stop, sent = signalled(), Sent()
    async with producing(settings) as producer:
        items = await send_items(producer, settings, world)
        async with running(settings) as worker:
            await until(lambda: worker.ready() and worker.store.table.size > items, worker, stop)
            if seconds is not None:
                asyncio.get_running_loop().call_later(seconds, stop.set)
            sent.started = time.monotonic()
            screen = asyncio.ensure_future(_show(worker, world, sent)) if not as_json else None
            await send_events(producer, settings, world, sent, rate, stop, worker)
            took = time.monotonic() - sent.started
            await producer.flush()
            await settled(worker)
            if screen is not None:
                screen.cancel()
                await asyncio.gather(screen, return_exceptions=True)
            return await _result(settings, worker, world, sent, took)


async def send_items(producer: AIOKafkaProducer, settings: Settings, world: World) -> int:
    """Send all of the world's items to their platforms' topics. Returns the number of items."""
    topics, n = {p.name: p.items_topic for p in settings.platforms}, 0
    for platform, key, value in world.items():
        await producer.send(topics[platform], value, key)
        n += 1
    await producer.flush()
    return n


async def send_events(
    producer: AIOKafkaProducer, settings: Settings, world: World, sent: Sent, rate: float, stop: asyncio.Event, worker: Worker, most: float = math.inf
) -> None:
    """Send the world's events at `rate` a second in small bunches, until `stop` is set or `most` events are sent. Raises the worker's failure."""
    topics = {p.name: p.topic for p in settings.platforms}
    partitions = settings.worker.partitions
    events = world.events(lambda: time.time_ns() // 1_000_000)
    while not stop.is_set() and not worker.failed.done() and sent.events < most:
        due = int(min((time.monotonic() - sent.started) * rate, most)) - sent.events
        for event in (next(events) for _ in range(due)):
            partition = partition_of(event.key, partitions) if event.key is not None else 0
            await producer.send(topics[event.platform], event.value, event.key, partition)
            sent.events += 1
            sent.bad += event.kind == "bad"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), TICK_S)
    if worker.failed.done():
        await worker.failed


async def settled(worker: Worker, within_s: float | None = None) -> None:
    """Wait until the worker has handled its topics' present records, and then the unified events made from them.

    Each wait ends after `within_s` seconds, SETTLE_S by default.
    """
    for _ in ("records of the platforms", "the unified events that they are by then"):
        await until(partial(worker.app.reached, await worker.app.ends()), worker, within_s=within_s)


async def until(condition: Any, worker: Worker, stop: asyncio.Event | None = None, within_s: float | None = None) -> None:
    """Wait until the condition holds, `stop` is set, or `within_s` seconds (default SETTLE_S) have passed. Raises the worker's failure."""
    deadline = time.monotonic() + (SETTLE_S if within_s is None else within_s)
    while not condition() and time.monotonic() < deadline and not (stop and stop.is_set()):
        if worker.failed.done():
            await worker.failed
        await asyncio.sleep(0.05)


async def _show(worker: Worker, world: World, sent: Sent) -> None:
    with Live(console=Console(), refresh_per_second=4, screen=sys.stdout.isatty()) as live:
        while True:
            live.update(draw(worker, world.featured, sent.events, sent.started))
            await asyncio.sleep(0.25)


async def _result(settings: Settings, worker: Worker, world: World, sent: Sent, took: float) -> dict[str, Any]:
    """Return the figures, the comparison of every stored window with the offline fold of the whole log, and the hit rates."""
    log = await read_topic(settings.kafka, settings.topic("events"), settings.worker.partitions)
    names = {p.code: p.name for p in settings.platforms}
    expected, duplicates = verify.offline_windows(log, names, settings.encoding.policy)
    stored = {user: window for tablet in worker.tablets for user, window in tablet.scan("windows")}
    profiles = sum(1 for tablet in worker.tablets for _ in tablet.scan("profiles"))
    p50, p99 = worker.metrics.age.percentiles(50, 99)
    return {
        "events": sent.events,
        "normalised": len(log),
        "duplicates": duplicates,
        "dead_letters": int(worker.metrics.value("currents_dead_letters_total")),
        "injected_bad": sent.bad,
        "users": len(expected),
        "profiles": profiles,
        "windows_wrong": verify.wrong(expected, stored),
        "age_p50_ms": round(p50, 1),
        "age_p99_ms": round(p99, 1),
        "events_per_s": round(sent.events / took, 1),
        **await asyncio.get_running_loop().run_in_executor(worker.encoding_pool, _ranking, settings, worker, world, list(stored.values())),
    }


def _ranking(settings: Settings, worker: Worker, world: World, windows: list[bytes]) -> dict[str, Any]:
    """Return the hit rates of the live encoder and of the decayed mean, on the same users. Call it on the encoding thread."""
    store, codes = worker.store, {p.name: p.code for p in settings.platforms}
    platform = np.zeros(store.table.size, np.uint8)
    platform[store.index([item_name(t.platform, t.id) for t in world.things])] = [codes[t.platform] for t in world.things]
    ranked = comparable(store.table, windows, RANKED_USERS)
    baseline = Baseline(worker.tower.dims, worker.tower.space_id)
    live, day_0 = (hits(e, store.table, platform, ranked) for e in (worker.encoder, baseline))
    return {
        "encoder": worker.encoder.version,
        "ranked_users": len(ranked),
        "hr10": round(float(live.mean()), 4) if ranked else None,
        "hr10_decayed_mean": round(float(day_0.mean()), 4) if ranked else None,
    }


def _sentence(r: dict[str, Any]) -> str:
    return (
        f"{r['events']} events of {r['users']} users, {r['duplicates']} of them duplicates; {r['dead_letters']} dead letters for {r['injected_bad']} "
        f"broken events; profiles {r['age_p50_ms']:.0f} ms old at the median, {r['age_p99_ms']:.0f} ms at p99; "
        f"{r['windows_wrong']} of {r['users']} windows differ from the offline fold of the whole log. "
        f"The next item is among the first ten for {r['hr10'] or 0:.0%} of {r['ranked_users']} users by the encoder {r['encoder']}, "
        f"for {r['hr10_decayed_mean'] or 0:.0%} by the decayed mean."
    )
