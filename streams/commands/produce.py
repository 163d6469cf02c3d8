"""`currents produce`: records of files to a platform's topic, acknowledged."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from kafka.errors import KafkaError, KafkaTimeoutError

from schemas.mapping import Mapper, Rejected
from streams.commands.records import Record
from streams.core.errors import BrokerError, InputError
from streams.core.settings import Settings
from streams.ingest.normalise import mappers
from streams.transport.clients import producer

FLUSH_S = 60.0
FLUSH_AFTER_AN_ERROR_S = 10.0
TOLD = 5  # refused records that are named


class Sending:
    """What became of the records that were sent."""

    def __init__(self) -> None:
        self.sent = self.acknowledged = 0
        self.refused: list[tuple[str, BaseException]] = []
        """By the broker or the client: where each stands, and why."""
        self.rejected: list[tuple[str, Rejected]] = []
        """Acknowledged, and no mapping can use them: workers make dead letters of them."""

    def taken(self, _: Any) -> None:
        """One was acknowledged."""
        self.acknowledged += 1

    def refuse(self, where: str, error: BaseException) -> None:
        """One was not."""
        self.refused.append((where, error))

    def said(self) -> str:
        """How far it came, in words."""
        return f"{self.acknowledged:,} records were sent and acknowledged before that"

    def warnings(self) -> list[str]:
        """What will be dead letters, in lines."""
        if not self.rejected:
            return []
        counts = ", ".join(f"{n:,} {reason}" for reason, n in Counter(r.reason for _, r in self.rejected).most_common())
        first = [f"{where}: {rejected.reason}: {rejected.detail}" for where, rejected in self.rejected[:TOLD]]
        return [f"{len(self.rejected):,} of these will be dead letters ({counts}); the first:", *first]


def produce(
    settings: Settings, found: Iterable[Record], platform: str, items: bool, rate: float, progress: Callable[[int], None], sending: Sending
) -> None:
    """Records to a platform's topic, acknowledged. Raises InputError or BrokerError, naming where records stand; `sending` knows how far it came."""
    mapping = next((p for p in settings.platforms if p.name == platform), None)
    if mapping is None:
        known = ", ".join(p.name for p in settings.platforms) or "none; add [[platforms]] to the settings file"
        raise InputError(f"--platform {platform}: not in the settings, want one of {known}")
    topic = mapping.items_topic if items else mapping.topic
    if not topic:
        raise InputError(f"--platform {platform}: has no items topic")
    client = producer(settings)
    patience = FLUSH_AFTER_AN_ERROR_S
    try:
        if not client.partitions_for(topic):
            raise BrokerError(f"topic {topic} does not exist: run `currents topics --create`")
        _send(client, topic, found, mappers(settings)[platform], items, rate, progress, sending)
        patience = FLUSH_S
    except KafkaTimeoutError:
        raise BrokerError(f"topic {topic}: does not exist or does not answer; run `currents topics`") from None
    finally:
        _flush(client, patience)
    if sending.refused:
        told = "; ".join(f"{where}: {type(error).__name__}: {error}" for where, error in sending.refused[:TOLD])
        raise BrokerError(f"topic {topic}: {len(sending.refused):,} records were not taken: {told}")
    if sending.acknowledged < sending.sent:
        raise BrokerError(f"topic {topic}: {sending.sent - sending.acknowledged:,} records were not acknowledged in {FLUSH_S:.0f} s")


def _send(
    client: Any, topic: str, found: Iterable[Record], mapper: Mapper, items: bool, rate: float, progress: Callable[[int], None], sending: Sending
) -> None:
    began = time.monotonic()
    for n, record in enumerate(found, 1):
        key, rejected = key_of(mapper, record.value, items)
        refuse = partial(sending.refuse, record.where)
        try:
            client.send(topic, record.value, key).add_callback(sending.taken).add_errback(refuse)
            sending.sent += 1
        except KafkaTimeoutError:
            raise
        except KafkaError as error:  # the client's own, such as of a record that is too large
            refuse(error)
        else:
            if rejected is not None:
                sending.rejected.append((record.where, rejected))
        if rate and n % 20 == 0:
            time.sleep(max(0.0, n / rate - (time.monotonic() - began)))
        progress(n)


def _flush(client: Any, seconds: float) -> None:
    """Wait for what is on its way, for so long."""
    try:
        with suppress(KafkaTimeoutError):
            client.flush(timeout=seconds)
    finally:
        client.close(timeout=5)


def key_of(mapper: Mapper, value: bytes, items: bool) -> tuple[bytes | None, Rejected | None]:
    """The account of an event, or the id of the first item, if the mapping finds it; and why not."""
    if items:
        found = mapper.items(value)
        if isinstance(found, Rejected):
            return None, found
        return (found[0].item.split(":", 1)[1].encode() if found else None), None
    events = mapper.events(value, "", 0, 0, time.time_ns() // 1_000_000)
    if isinstance(events, Rejected):
        return None, events
    return (events[0].account.encode() if events else None), None
