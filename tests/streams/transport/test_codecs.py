"""Record batches of every codec, from producers and by a topic's own `compression.type`."""

import asyncio
import itertools
import time
from collections.abc import Callable

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from schemas.archive import Archive
from schemas.events import decode_event
from streams.commands.produce import Sending, produce
from streams.commands.records import Record
from streams.commands.tail import follow
from streams.demo.live import settled
from streams.processes import archiver
from streams.processes.worker import running
from testkit.cluster import RIGHT, Cluster

pytestmark = pytest.mark.kafka
CODECS = ("gzip", "snappy", "lz4", "zstd")
OWN = {"events": "lz4", "windows": "zstd", "profiles": "snappy", "item-vectors": "zstd", "releases": "lz4"}
EVENTS, USERS = 400, 20


def rows(codec: str) -> list[bytes]:
    now = time.time_ns() // 1_000_000
    return [
        orjson.dumps({"account": f"{codec}-{n % USERS}", "item": f"i{n % 50}", "behavior": "view", "time": now - 10_000 + n, "id": f"{codec}-{n}"})
        for n in range(EVENTS)
    ]


async def send(cluster: Cluster, codec: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, compression_type=codec, linger_ms=20)
    async with producer:
        for n, row in enumerate(rows(codec)):
            await producer.send(f"{cluster.prefix}.in.shop", row, partition=n % cluster.partitions)


def test_codecs(cluster: Callable[..., Cluster]) -> None:
    """Worker, archiver, `produce` and `tail` read and write whatever a producer or a topic compresses with."""
    c = cluster(query={"port": 0}, archive={"url": "unset"})
    settings = c.settings.model_copy(update={"archive": c.settings.archive.model_copy(update={"url": str(c.folder / "archive")})})
    for name, codec in OWN.items():
        c.configure(settings.topic(name), {"compression.type": codec})
    c.items(50)

    async def scenario() -> None:
        async with running(settings) as worker:
            for codec in CODECS:
                await send(c, codec)
            for codec in CODECS:  # and as the platform's topic says
                c.configure(f"{c.prefix}.in.shop", {"compression.type": codec})
                sending, records = Sending(), [Record(str(n), value) for n, value in enumerate(rows(f"topic-{codec}"))]
                await asyncio.to_thread(produce, settings, records, "shop", False, 0.0, lambda _: None, sending)
                assert sending.acknowledged == EVENTS
            await settled(worker)

    asyncio.run(scenario())
    assert c.check(c.folder / "data") == RIGHT
    users = {f"{kind}{codec}-{n}" for kind in ("", "topic-") for codec in CODECS for n in range(USERS)}
    assert {u for u, _ in itertools.islice(follow(settings, users, True), len(users))} <= users
    assert {decode_event(r.value).user_id for r in c.log("events")} == users
    assert archiver.run(settings, once=True) == 2 * len(CODECS) * EVENTS + 50
    assert Archive(settings.archive.url).batches("events")
