"""Consumers that do not hear that they are to stop."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from streams.core.cancel import stop
from streams.core.settings import Kafka
from streams.transport.reading import reader
from testkit.apache import ApacheKafka
from testkit.cluster import Cluster, wait_for

pytestmark = pytest.mark.kafka
AWAY_S = 2.0
ONE = [b'{"account": "u1", "item": "i1", "behavior": "view", "time": 1700000000000, "id": "1"}']


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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["refused", "silent"])
def test_brokers_away(tmp_path: Path, how: signal.Signals) -> None:
    """A worker whose brokers are away ends at SIGTERM with status 0 and one line, and waits for nobody; what was not committed comes again."""
    with ApacheKafka() as kafka:
        c = Cluster(kafka.bootstrap, "away", tmp_path, {})
        try:
            c.items(50)
            worker = c.worker("a").ready()
            c.send("away.in.shop", ONE * 200)
            wait_for("events", lambda: worker.metric("currents_folded_total") > 0)
            assert kafka.process is not None
            kafka.process.send_signal(how)
            time.sleep(AWAY_S)
            before = len(worker.says())
            assert worker.terminate() == 0
            said = worker.says()[before:]
            assert "Traceback" not in said
            assert said.count("no broker answers") == 1
        finally:
            c.stop()
            if kafka.process is not None:
                kafka.process.kill()
                kafka.process.wait()
