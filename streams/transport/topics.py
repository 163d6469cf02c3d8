"""Currents' topics: which there are, how they should be, and what differs on the brokers."""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import stamina
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError

from streams.core.errors import BrokerError
from streams.core.settings import Kafka, Settings
from streams.transport.broker_settings import for_kafka_python
from streams.transport.refusals import refusal

log = logging.getLogger("currents.worker")
DAY_MS = 86_400_000
ANY_TIME = {"message.timestamp.after.max.ms": str(2**63 - 1)}
"""A worker whose clock is ahead must not be stopped by the brokers' one hour: its rows are right, and their times are for information."""
RELEASES_KEPT_MS = 366 * DAY_MS  # of an old release's record, at least: to go back is to write it again
DEAD_LETTER_BYTES = 16 << 20  # a dead letter holds the whole original event


@dataclass(frozen=True)
class Topic:
    """A topic as it should be; partitions = 0 leaves the number to whoever owns it."""

    name: str
    partitions: int
    config: dict[str, str]
    ours: bool = True


def topics(settings: Settings) -> list[Topic]:
    """Every topic that a worker of these settings reads or writes."""
    n, compact = settings.worker.partitions, {"cleanup.policy": "compact", **ANY_TIME}
    kept = {"cleanup.policy": "delete", "retention.ms": str(int(settings.ingest.event_days * DAY_MS)), **ANY_TIME}
    redriven = {"cleanup.policy": "delete", "retention.ms": str(int((settings.ingest.dead_letter_days + 1) * DAY_MS)), **ANY_TIME}
    dead = {
        "cleanup.policy": "delete",
        "retention.ms": str(int(settings.ingest.dead_letter_days * DAY_MS)),
        "max.message.bytes": str(DEAD_LETTER_BYTES),
        **ANY_TIME,
    }
    own = [
        Topic(settings.topic("events"), n, kept),
        Topic(settings.topic("windows"), n, compact),
        Topic(settings.topic("profiles"), n, compact),
        Topic(settings.topic("item-vectors"), n, compact),
        Topic(settings.topic("dead-letters"), n, dead),
        Topic(settings.topic("redriven"), n, redriven),
        Topic(settings.topic("releases"), 1, {**compact, "min.compaction.lag.ms": str(RELEASES_KEPT_MS)}),
    ]
    names = dict.fromkeys(name for p in settings.platforms for name in (p.topic, p.items_topic) if name)
    platforms = [Topic(name, 0, {}, ours=False) for name in names]
    return own + platforms


SEEN_S = 20.0  # until a topic just created is listed


def admin(kafka: Kafka, attempts: int = 5) -> KafkaAdminClient:
    """A connected admin client; tries again with backoff. Raises BrokerError when no broker answers."""
    try:
        for attempt in stamina.retry_context(on=KafkaError, attempts=attempts, wait_initial=0.5, wait_max=10, timeout=None):
            with attempt:
                return KafkaAdminClient(**for_kafka_python(kafka), request_timeout_ms=10_000, bootstrap_timeout_ms=2_000)
    except KafkaError as error:
        why = "no broker answers" if isinstance(error, KafkaTimeoutError) else str(error)
    except (OSError, ValueError) as error:
        why = str(error)
    if (refused := refusal(kafka)) is not None:
        raise BrokerError(f"kafka.bootstrap = {kafka.bootstrap!r}: {refused}")
    raise BrokerError(f"kafka.bootstrap = {kafka.bootstrap!r}: {why} ({attempts} attempts). Is Kafka up, and the address right?")


@contextlib.contextmanager
def asking(kafka: Kafka, attempts: int = 5) -> Iterator[KafkaAdminClient]:
    """An admin client, closed at the end. Raises BrokerError when no broker answers, or none any more."""
    client = admin(kafka, attempts)
    try:
        yield client
    except KafkaError as error:
        raise BrokerError(f"kafka.bootstrap = {kafka.bootstrap!r}: answered, and then {error}; is it being restarted?") from None
    finally:
        client.close()


def create(client: KafkaAdminClient, settings: Settings, platforms: bool = False) -> list[str]:
    """Create what is missing of Currents' own topics (and of the platforms'); returns the names of the new ones."""
    there = set(client.list_topics())
    made = []
    for topic in topics(settings):
        if topic.name in there or not (topic.ours or platforms):
            continue
        new = NewTopic(topic.name, topic.partitions or settings.worker.partitions, settings.kafka.replication, topic_configs=topic.config)
        try:
            client.create_topics([new])
        except TopicAlreadyExistsError:
            continue  # another worker was faster
        except KafkaError as error:
            raise BrokerError(f"topic {topic.name}: cannot be created: {error}") from None
        made.append(topic.name)
    deadline = time.monotonic() + SEEN_S
    while made and not set(made) <= set(client.list_topics()) and time.monotonic() < deadline:
        time.sleep(0.1)  # a broker that is busy answers before its own metadata know
    return made


def identity(client: KafkaAdminClient, topic: str) -> dict[str, Any]:
    """What tells a topic from one of the same name that was made later: name, id, partitions. Raises BrokerError when it is missing."""
    if topic not in client.list_topics():
        raise BrokerError(f"topic {topic} is missing: has a worker run? Or run `currents topics --create`")
    (found,) = client.describe_topics([topic])
    return {"topic": topic, "topic_id": str(found.get("topic_id")), "partitions": len(found["partitions"])}


def differences(client: KafkaAdminClient, settings: Settings) -> Iterator[tuple[Topic, str, bool]]:
    """(topic, what differs, whether a worker must not run so) for every topic that is missing or not as it should be."""
    wanted = topics(settings)
    there = set(client.list_topics())
    names = [t.name for t in wanted if t.name in there]
    partitions = {d["name"]: len(d["partitions"]) for d in client.describe_topics(names)} if names else {}
    configs = _configs(client, names)
    for topic in wanted:
        if topic.name not in partitions:
            yield topic, "is missing", True
            continue
        if topic.partitions and partitions[topic.name] != topic.partitions:
            yield topic, f"has {partitions[topic.name]} partitions, want {topic.partitions} (worker.partitions)", True
        for key, value in topic.config.items():
            found = configs.get(topic.name, {}).get(key, value)
            if found != value:
                yield topic, f"has {key} = {found}, want {value}", False


def _configs(client: KafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found = client.describe_configs(resources, config_filter="all") if resources else {}
    return {name: {k: c["value"] for k, c in rows.items()} for name, rows in found.get("topic", {}).items()}


def prepare(settings: Settings) -> None:
    """Make Currents' topics and verify all. Raises BrokerError naming what a worker cannot run with."""
    with asking(settings.kafka) as client:
        create(client, settings)
        for topic, what, fatal in differences(client, settings):
            if fatal:
                hint = "recreate it or change the setting" if topic.ours else "create it, or run `currents topics --create`"
                raise BrokerError(f"topic {topic.name} {what}: {hint}")
            log.warning("topic %s %s", topic.name, what)
