"""Consumers that do not hear that they are to stop."""

import asyncio

import pytest
from aiokafka import TopicPartition
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from streams.restore import reader
from streams.settings import Kafka
from streams.stopping import stop

pytestmark = pytest.mark.kafka


def test_stop(bootstrap: str) -> None:
    """A consumer stops also just after its assignment has changed, when aiokafka's own `stop` would wait for ever."""
    client = KafkaAdminClient(bootstrap_servers=bootstrap)
    client.create_topics([NewTopic("stopping-a", 1, 1), NewTopic("stopping-b", 1, 1)])
    client.close()

    async def scenario() -> None:
        consumer = reader(Kafka(bootstrap=bootstrap))
        await consumer.start()
        for topic in ("stopping-a", "stopping-b"):
            consumer.assign([TopicPartition(topic, 0)])
            consumer.seek(TopicPartition(topic, 0), 0)
            if topic == "stopping-a":
                await consumer.getmany(timeout_ms=300)
        await stop(consumer)
        assert consumer._fetcher._fetch_task.done()

    asyncio.run(asyncio.wait_for(scenario(), 60))
