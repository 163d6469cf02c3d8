"""Helpers for a worker inside the test's process, whose parts a test can reach: settings, records, waiting."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer

from schemas.profiles import Profile, decode_profile
from streams.audit import windows as verify
from streams.core.settings import Settings
from streams.processes.worker import Worker
from streams.transport.reading import read_topic
from streams.transport.topics import asking, create

PARTITIONS = 3
NAMES = tuple(f"i{n}" for n in range(10))
PLATFORM = {"name": "shop", "code": 1, "preset": "plain", "shared_ids": True}


def settings_of(bootstrap: str, folder: Path, **sections: dict[str, Any]) -> Settings:
    """Return settings with topics of their own, and create the topics."""
    prefix = f"t{time.time_ns()}"
    worker = {"prefix": prefix, "partitions": PARTITIONS, "data_dir": folder / "worker", **sections.pop("worker", {})}
    platform = {**PLATFORM, "topic": f"{prefix}.in", "items_topic": f"{prefix}.items"}
    values: dict[str, Any] = {"kafka": {"bootstrap": bootstrap}, "query": {"port": 0}, "worker": worker, "platforms": [platform], **sections}
    values["releases"] = {"allowed_urls": [str(folder.parent)], **values.get("releases", {})}
    settings = Settings(**values)
    with asking(settings.kafka) as client:
        create(client, settings, platforms=True)
    return settings


async def send(settings: Settings, topic: str, rows: Iterable[dict[str, Any]]) -> None:
    """Send rows as JSON to a topic."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap, max_batch_size=256 << 10)
    await producer.start()
    for n, row in enumerate(rows):
        await producer.send(topic, orjson.dumps(row), partition=n % PARTITIONS)
    await producer.stop()


async def events(settings: Settings, users: Iterable[str], tag: str, item: str | None = None) -> None:
    """Send one event per user, on one of the items i0..i9 or on the given item."""
    now = time.time_ns() // 1_000_000
    rows = ({"account": u, "item": item or f"i{n % 10}", "behavior": "view", "time": now - 5000 + n, "id": f"{tag}-{n}"} for n, u in enumerate(users))
    await send(settings, settings.platforms[0].topic, rows)


async def items(settings: Settings, names: Iterable[str] = NAMES) -> None:
    """Send items with these names."""
    topic = settings.platforms[0].items_topic
    assert topic is not None
    await send(settings, topic, ({"id": name, "title": f"Coffee thing {name}", "categories": ["Kitchen"]} for name in names))


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 120) -> Any:
    """Wait until an async condition is true and return its value."""
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return found


async def wait(worker: Worker, condition: Callable[[], Any], seconds: float = 120) -> None:
    """Wait until a condition holds. Raises the worker's failure."""

    async def holds() -> Any:
        if worker.failed.done():
            await worker.failed
        return condition()

    await until(holds, seconds)


async def profiles(settings: Settings) -> dict[str, Profile]:
    """Return user -> newest profile in the changelog."""
    records = await read_topic(settings.kafka, settings.topic("profiles"), PARTITIONS)
    return {u.decode(): decode_profile(row) for u, row in verify.latest(records).items()}


async def windows_wrong(settings: Settings) -> int:
    """Return the number of windows in the changelog that differ from the offline fold of the unified topic."""
    log, rows = [await read_topic(settings.kafka, settings.topic(name), PARTITIONS) for name in ("events", "windows")]
    expected, _ = verify.offline_windows(log, {1: "shop"}, settings.encoding.policy)
    return verify.wrong(expected, verify.latest(rows))
