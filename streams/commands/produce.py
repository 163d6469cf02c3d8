"""`currents produce`: JSON lines to a platform's topic, acknowledged."""

import time
from collections.abc import Callable, Iterable

import orjson
from kafka.errors import KafkaTimeoutError

from schemas.mapping import Mapper, Rejected
from streams.core.errors import BrokerError, InputError
from streams.core.settings import Settings
from streams.ingest.normalise import mappers
from streams.transport.clients import producer


def produce(settings: Settings, lines: Iterable[bytes], platform: str, items: bool, rate: float, raw: bool, progress: Callable[[int], None]) -> int:
    """JSON lines to a platform's topic, acknowledged; returns how many. Raises InputError naming the line."""
    mapping = next((p for p in settings.platforms if p.name == platform), None)
    if mapping is None:
        known = ", ".join(p.name for p in settings.platforms) or "none; add [[platforms]] to the settings file"
        raise InputError(f"--platform {platform}: not in the settings, want one of {known}")
    topic = mapping.items_topic if items else mapping.topic
    if not topic:
        raise InputError(f"--platform {platform}: has no items topic")
    client = producer(settings)
    mapper, failed, n, began = mappers(settings)[platform], list[BaseException](), 0, time.monotonic()
    try:
        if not client.partitions_for(topic):
            raise BrokerError(f"topic {topic} does not exist: run `currents topics --create`")
        for number, line in enumerate(lines, 1):
            value = line.rstrip(b"\r\n")
            if not value.strip():
                continue
            if not raw:
                _check_line(value, number)
            client.send(topic, value, key_of(mapper, value, items)).add_errback(failed.append)
            n += 1
            if rate and n % 20 == 0:
                time.sleep(max(0.0, n / rate - (time.monotonic() - began)))
            progress(n)
        client.flush(timeout=60)
    except KafkaTimeoutError:
        raise BrokerError(f"topic {topic}: does not exist or does not answer; run `currents topics`") from None
    finally:
        client.close(timeout=5)
    if failed:
        raise BrokerError(f"topic {topic}: {len(failed)} of {n} records were not taken: {failed[0]}")
    return n


def _check_line(value: bytes, number: int) -> None:
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InputError(f"line {number}: not JSON: {error} (--raw sends it all the same)") from None


def key_of(mapper: Mapper, value: bytes, items: bool) -> bytes | None:
    """The account of an event, or the id of an item, if the mapping finds it."""
    if items:
        item = mapper.item(value)
        return None if isinstance(item, Rejected) else item.item.split(":", 1)[1].encode()
    events = mapper.events(value, "", 0, 0, time.time_ns() // 1_000_000)
    return None if isinstance(events, Rejected) or not events else events[0].account.encode()
