"""Dead letters are sent again once, however a run ended."""

import asyncio
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from schemas.deadletters import DeadLetter, encode_dead_letter
from schemas.events import decode_event
from streams.core.clock import now_ms
from streams.core.errors import BrokerError
from streams.core.settings import Settings
from streams.ingest.redrive import marks, redrive
from streams.transport.reading import read_topic
from streams.transport.sender import Row, Sender
from streams.transport.topics import asking, create

pytestmark = pytest.mark.broker
PARTITIONS, LETTERS = 3, 1200


def settings_of(bootstrap: str, folder: Path, **platform: Any) -> Settings:
    prefix = f"d{time.time_ns()}"
    one = {"name": "carts", "code": 1, "topic": f"{prefix}.in", "account": "u", "item": "lines[*].sku", "behavior": "did", "time": "at"}
    worker = {"prefix": prefix, "partitions": PARTITIONS, "data_dir": folder}
    settings = Settings(kafka={"bootstrap": bootstrap}, worker=worker, platforms=[{**one, **platform}])
    with asking(settings.kafka) as client:
        create(client, settings, platforms=True)
    return settings


async def bury(settings: Settings) -> None:
    """Letters of two events each; every fourth is beyond help."""
    producer, now = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap), now_ms()
    await producer.start()
    for n in range(LETTERS):
        body = {"u": f"u{n % 50}", "at": now - n, "lines": [{"sku": "a"}, {"sku": "b"}], "did": "gawped" if n % 4 else "?"}
        letter = DeadLetter("unknown-behavior", "", "carts", settings.platforms[0].topic, n % 2, n, now, now, None, orjson.dumps(body))
        await producer.send(settings.topic("dead-letters"), encode_dead_letter(letter), partition=n % PARTITIONS)
    await producer.send(settings.topic("dead-letters"), b"no letter", partition=0)
    await producer.stop()


def unified(settings: Settings) -> list[tuple[int, str]]:
    """(offset of the record, item) of every event of the unified topic."""
    records = asyncio.run(read_topic(settings.kafka, settings.topic("events"), PARTITIONS))
    events = [decode_event(r.value) for r in records]
    return sorted((e.offset, e.item_id) for e in events)


def run(settings: Settings, everything: bool = False, dry_run: bool = False) -> dict[str, Any]:
    return asyncio.run(redrive(settings, everything, dry_run, lambda _: None))


@pytest.mark.parametrize("dies", ["before anything", "half a lot", "before the marks", "in the marks", "in another lot"])
def test_died(bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str) -> None:
    """Wherever a run dies, after the next one every mended event is in the unified topic once, and the others are still reported."""
    settings = settings_of(bootstrap, tmp_path, behaviors={"gawped": "view"})
    asyncio.run(bury(settings))
    send, calls = Sender.send, list[str]()

    async def dying(self: Sender, topic: str, parts: dict[int, list[Row]]) -> dict[int, int]:
        name = topic.removeprefix(f"{settings.worker.prefix}.")
        calls.append(name)
        lots, marking = calls.count("events"), (name == "redriven" and parts.keys() != {0}) or calls.count("redriven") > 1
        if dies == "before anything" and name == "events":
            raise ConnectionError
        if dies == "half a lot" and name == "events":
            some = dict(list(parts.items())[:1])
            await send(self, topic, {p: rows[: len(rows) // 2] for p, rows in some.items()})
            raise ConnectionError
        if dies == "before the marks" and name == "redriven" and marking:
            raise ConnectionError
        if dies == "in the marks" and name == "redriven" and marking:
            await send(self, topic, {p: rows[:20] for p, rows in parts.items()})
            raise ConnectionError
        if dies == "in another lot" and name == "redriven" and marking and lots == 2:
            raise ConnectionError
        return await send(self, topic, parts)

    monkeypatch.setattr(Sender, "send", dying)
    with pytest.raises(ConnectionError):
        run(settings)
    monkeypatch.undo()
    good = [n for n in range(LETTERS) if n % 4]
    assert len(unified(settings)) < 2 * len(good)
    assert asyncio.run(marks(settings))[1] is not None
    counts = run(settings, dry_run=True)
    assert run(settings) == {**counts, "dry_run": False}
    assert counts["still_rejected"] == {"unknown-behavior": LETTERS - len(good)}
    assert unified(settings) == sorted((n, sku) for n in good for sku in "ab")
    assert run(settings) == {"mended": 0, "events": 0, "still_rejected": {"unknown-behavior": LETTERS - len(good)}, "dry_run": False}
    assert len(unified(settings)) == 2 * len(good)


def test_mended_in_two_steps(bootstrap: str, tmp_path: Path) -> None:
    """What the first mending left is there for the second; only --all sends again what was sent."""
    settings = settings_of(bootstrap, tmp_path, behaviors={"gawped": "view"})
    asyncio.run(bury(settings))
    good = LETTERS * 3 // 4
    assert run(settings)["mended"] == good
    platform = settings.platforms[0].model_copy(update={"behaviors": {"gawped": "view", "?": "click"}})
    settings = settings.model_copy(update={"platforms": (platform,)})
    assert run(settings) == {"mended": LETTERS - good, "events": 2 * (LETTERS - good), "still_rejected": {}, "dry_run": False}
    assert unified(settings) == sorted((n, sku) for n in range(LETTERS) for sku in "ab")
    assert run(settings, everything=True)["mended"] == LETTERS
    assert len(unified(settings)) == 4 * LETTERS


def test_broker_goes(tmp_path: Path) -> None:
    """A broker that is not there is one clear error."""
    settings = Settings(kafka={"bootstrap": "127.0.0.1:1"}, worker={"data_dir": tmp_path})
    with pytest.raises(BrokerError, match="run it again"):
        run(settings)
