"""One to three Apache Kafka brokers. Each worker connects to each broker through its own proxy; other clients connect directly."""

import random
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaError

from testkit.apache import START_S, ApacheKafka, new_cluster_id
from tests.chaos.proxy import Network

PROPERTIES = """
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners={listeners}
advertised.listeners={advertised}
inter.broker.listener.name=DIRECT
controller.listener.names=CONTROLLER
listener.security.protocol.map={protocols}
log.dirs={{logs}}
auto.create.topics.enable=false
default.replication.factor={replication}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replication}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
replica.lag.time.max.ms=5000
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
controlled.shutdown.enable=true
num.network.threads=1
num.io.threads=4
log.cleaner.enable=false
"""
PORTS = range(20_000, 32_000)  # below the range of outgoing connections, so that a stopped broker's port stays free


class Ports:
    """Owns a random order of ports and hands out each free port once."""

    def __init__(self) -> None:
        self._left = random.sample(PORTS, len(PORTS))

    def take(self) -> int:
        while True:
            port = self._left.pop()
            with socket.socket() as s:
                try:
                    s.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port


class Brokers:
    """Owns a cluster of brokers; a context manager. The replication factor is 3 with three brokers, else 1."""

    def __init__(self, folder: Path, n: int, workers: int, heap_mb: int = 384) -> None:
        ports, self.network, self.stops = Ports(), Network(), 0
        self.lock = threading.Lock()
        """Held while a broker is down or leaders move."""
        self.replication, self.in_sync = (3, 2) if n >= 3 else (1, 1)
        direct, controllers = [ports.take() for _ in range(n)], [ports.take() for _ in range(n)]
        names = [f"WORKER{w}" for w in range(workers)]
        voters = ",".join(f"{k}@127.0.0.1:{port}" for k, port in enumerate(controllers))
        protocols = ",".join(f"{name}:PLAINTEXT" for name in ("DIRECT", "CONTROLLER", *names))
        cluster, self.nodes = new_cluster_id(), list[ApacheKafka]()
        for k in range(n):
            listeners = [f"DIRECT://127.0.0.1:{direct[k]}", f"CONTROLLER://127.0.0.1:{controllers[k]}"]
            advertised = listeners[:1]
            for w, name in enumerate(names):
                here, proxy = ports.take(), ports.take()
                self.network.add(w, k, proxy, here)
                listeners.append(f"{name}://127.0.0.1:{here}")
                advertised.append(f"{name}://127.0.0.1:{proxy}")
            text = PROPERTIES.format(
                node=k, voters=voters, listeners=",".join(listeners), advertised=",".join(advertised), protocols=protocols,
                replication=self.replication, in_sync=self.in_sync,
            )  # fmt: skip
            (folder / f"broker-{k}").mkdir(parents=True)
            self.nodes.append(ApacheKafka(folder / f"broker-{k}", heap_mb, direct[k], text, cluster))
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in direct)

    def bootstrap_of(self, worker: int) -> str:
        """Return the brokers' addresses for a worker, which are those of its proxies."""
        return ",".join(f"127.0.0.1:{self.network.links[worker, k].port}" for k in range(len(self.nodes)))

    def __enter__(self) -> "Brokers":
        try:
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.wait()
            self.settle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                node.process.kill()
                node.process.wait()
            shutil.rmtree(node.folder, ignore_errors=True)
        self.network.close()

    def stop(self, k: int, how: str) -> None:
        """Stop a broker. `term` lets the broker hand over its partitions first, `kill` does not."""
        process = self.nodes[k].process
        assert process is not None
        if how == "term":
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        else:
            process.kill()
        process.wait()
        self.stops += 1

    def start(self, k: int) -> None:
        """Start a stopped broker, and wait until the broker answers and every replica has caught up."""
        self.nodes[k].launch()
        self.nodes[k].wait()
        self.settle()

    def settle(self, seconds: float = START_S) -> None:
        """Wait until every partition has all its replicas in sync."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                client = self.admin()
                topics = client.describe_topics()
                client.close()
            except KafkaError:
                time.sleep(0.5)
                continue
            if all(len(p["isr_nodes"]) == len(p["replica_nodes"]) and p["leader_id"] >= 0 for t in topics for p in t["partitions"]):
                return
            time.sleep(0.3)
        raise AssertionError(f"waited {seconds:.0f} s for all replicas to be in sync")

    def admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=self.bootstrap.split(","), request_timeout_ms=10_000)

    def leaders(self, client: KafkaAdminClient, topics: list[str]) -> dict[TopicPartition, tuple[int, list[int]]]:
        """Return partition -> (leader, replicas)."""
        found = client.describe_topics(topics)
        return {TopicPartition(t["name"], p["partition_index"]): (p["leader_id"], list(p["replica_nodes"])) for t in found for p in t["partitions"]}

    def move_leaders(self, topics: list[str], by: int) -> int:
        """Make another replica the leader of every partition, `by` places further in its replica list. Returns the number of moved leaders."""
        client = self.admin()
        try:
            before = self.leaders(client, topics)
            order = {tp: [*r[by % len(r) :], *r[: by % len(r)]] for tp, (_, r) in before.items()}
            client.alter_partition_reassignments(order)
            parts: dict[str, list[int]] = {}
            for tp in order:
                parts.setdefault(tp.topic, []).append(tp.partition)
            client.elect_leaders(0, parts, raise_errors=False)
            deadline, moved = time.monotonic() + 10, 0
            while time.monotonic() < deadline and moved < len(before) / 2:
                now = self.leaders(client, topics)
                moved = sum(before[tp][0] != leader for tp, (leader, _) in now.items())
                time.sleep(0.2)
            return moved
        finally:
            client.close()
