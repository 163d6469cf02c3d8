"""One Apache Kafka broker (KRaft, combined roles) on a free port, for tests and benchmarks. `python -m testkit.apache` keeps one running."""

import fcntl
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parent.parent
JARS = ROOT / ".kafka" / "jars"
POM = Path(__file__).parent / "pom.xml"
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={logs}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.enable=false
"""
START_S = 300.0  # on a busy machine; alone it takes 3


def free_port() -> int:
    """Return a TCP port on loopback that no process listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def install() -> None:
    """Copy Kafka's jars from Maven Central into .kafka/jars. Several processes may call it at once; one copies."""
    JARS.mkdir(parents=True, exist_ok=True)
    with (JARS.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (JARS / ".complete").exists():
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (JARS / ".complete").touch()


def new_cluster_id() -> str:
    """Return a new cluster id, with which all brokers of one cluster are formatted."""
    return uuid.uuid4().hex[:22]


class ApacheKafka:
    """Owns a broker process; a context manager. `bootstrap` is the broker's address, `folder/kafka.log` its log.

    A broker of a larger cluster gets its port, its server.properties and the cluster id as arguments.
    """

    def __init__(
        self, folder: Path | None = None, heap_mb: int = 512, port: int = 0, properties: str = PROPERTIES, cluster_id: str | None = None
    ) -> None:
        install()
        self.folder = folder or Path(tempfile.mkdtemp(prefix="currents-kafka-"))
        self.port, controller = port or free_port(), free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._heap = [f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4"]
        self._properties = self.folder / "server.properties"
        self._properties.write_text(properties.format(port=self.port, controller=controller, logs=self.folder / "logs"))
        self._java("kafka.tools.StorageTool", "format", "-t", cluster_id or new_cluster_id(), "-c", str(self._properties)).wait(START_S)
        self.process: subprocess.Popen[bytes] | None = None

    def _java(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "kafka.log").open("ab") as log:
            return subprocess.Popen(["java", *self._heap, "-cp", f"{JARS}/*", *arguments], stdout=log, stderr=log)

    def start(self) -> "ApacheKafka":
        """Start the broker and wait until its port answers. Stops the broker if the port does not answer in time."""
        self.launch()
        try:
            return self.wait()
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start the broker without waiting: a broker of a cluster answers only once a majority of the brokers runs."""
        self.process = self._java("kafka.Kafka", str(self._properties))

    def wait(self, seconds: float = START_S) -> "ApacheKafka":
        """Wait until the port answers."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"Kafka did not start: {(self.folder / 'kafka.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop the broker and keep its data."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> "ApacheKafka":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    with ApacheKafka() as kafka:
        print(kafka.bootstrap, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
