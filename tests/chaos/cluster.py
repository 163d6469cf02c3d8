"""Runs workers in slots, restarts them as a supervisor does, and records how they ended."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import stamina
from kafka import KafkaConsumer, TopicPartition

from schemas.releases import Release
from streams.audit import windows as verify
from streams.core.errors import BrokerError
from streams.core.fault_points import VARIABLE
from testkit.cluster import Cluster
from testkit.processes import HTTP, WorkerProcess, wait_for
from tests.chaos.brokers import Brokers

RESTART_S = 0.3
SCRATCH_MB = 192
READY_S = 400.0
QUIET_S = 8.0
"""Seconds without a new profile after which the cluster counts as quiet."""
GENERATION = re.compile(r"generation (\d+): tablets")
LOST = re.compile(r"a batch went missing between offsets|fetched from offset")


@dataclass
class Slot:
    """Owns a worker's data folder and fault points, which outlive the worker's processes."""

    number: int
    data_dir: Path
    faults: Path
    environment: dict[str, str]
    wanted: bool = False
    worker: WorkerProcess | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held by the fault that acts on this worker."""
    paused: bool = False
    tablets: set[int] = field(default_factory=set)
    """The worker's tablets at the last request."""
    died_at: float = 0.0

    @property
    def alive(self) -> bool:
        return self.worker is not None and self.worker.process.poll() is None

    def arm(self, point: str, what: str, passes: int = 0) -> Path:
        """Arm a fault point. Returns the file that exists once the point was hit."""
        hit = (self.faults / point).with_suffix(".hit")
        hit.unlink(missing_ok=True)
        (self.faults / f"{point}.new").write_text(f"{what} {passes}")
        (self.faults / f"{point}.new").rename(self.faults / point)
        return hit

    def disarm(self, point: str) -> None:
        (self.faults / point).unlink(missing_ok=True)


class ChaosCluster(Cluster):
    """Owns the workers in slots 0..workers-1, one slot for a joining worker, and the thread that restarts workers."""

    def __init__(
        self, brokers: Brokers, prefix: str, folder: Path, workers: int, encoders: list[str], announced: Mapping[str, Release], **settings: Any
    ) -> None:
        kafka = {"bootstrap": brokers.bootstrap, "replication": brokers.replication}
        for attempt in stamina.retry_context(on=BrokerError, attempts=5, timeout=None):  # creating topics takes long on a busy machine
            with attempt:
                super().__init__(brokers.bootstrap, prefix, folder, {"kafka": kafka, **settings})
        self.brokers, self.encoders, self.releases = brokers, encoders, announced
        self.slots = [self._slot(n) for n in range(workers + 1)]
        self.ended = Counter[str]()
        """Last words of workers that ended by themselves -> count."""
        self.starts = 0
        self._over = False
        self._watch = threading.Thread(target=self._supervise, daemon=True)
        self._look = threading.Thread(target=self._ask, daemon=True)

    def _slot(self, n: int) -> Slot:
        data, faults = self.folder / f"data-{n}", self.folder / f"faults-{n}"
        data.mkdir()
        faults.mkdir()
        mounted(data)
        environment = {"CURRENTS_KAFKA__BOOTSTRAP": self.brokers.bootstrap_of(n), VARIABLE: str(faults)}
        return Slot(n, data, faults, environment | {"CURRENTS_ENCODING__ENCODER": self.encoders[0]})

    # Running

    def run(self, slots: int) -> None:
        """Start the first workers and the supervisor thread."""
        for slot in self.slots[:slots]:
            slot.wanted = True
        self._watch.start()
        self._look.start()

    def _supervise(self) -> None:
        while not self._over:
            for slot in self.slots:
                if slot.worker is not None and not slot.alive and not slot.died_at:
                    slot.died_at = time.monotonic()
                    if slot.worker.process.returncode > 0:
                        self.ended[last_words(slot.worker)] += 1
                if not slot.alive:
                    slot.tablets = set()
                if slot.wanted and not slot.alive and time.monotonic() - slot.died_at >= RESTART_S:
                    slot.worker = self.worker(str(slot.number), slot.data_dir, **slot.environment)
                    slot.paused, slot.died_at = False, 0.0
                    self.starts += 1
            time.sleep(0.05)

    def _ask(self) -> None:
        while not self._over:
            for slot in self.slots:
                if slot.alive and not slot.paused:
                    with contextlib.suppress(httpx.HTTPError, AttributeError):
                        answer = HTTP.get(f"{slot.worker.url}/readyz", timeout=0.5)  # type: ignore[union-attr]
                        slot.tablets = set(answer.json().get("tablets", ()))
            time.sleep(0.3)

    def ready(self, slot: Slot, seconds: float = READY_S) -> WorkerProcess:
        """Wait until a slot's worker has tablets and has restored them."""

        def is_ready() -> WorkerProcess | None:
            worker = slot.worker
            try:
                return worker if slot.alive and worker is not None and worker.is_ready() else None
            except AssertionError:  # the worker has just ended
                return None

        found: WorkerProcess = wait_for(f"worker {slot.number} to be ready", is_ready, seconds)
        return found

    def serves(self, slot: Slot) -> str:
        """Return the version that a slot's worker serves; empty if the worker does not answer."""
        with contextlib.suppress(httpx.HTTPError, AttributeError, KeyError):
            return str(HTTP.get(f"{slot.worker.url}/healthz", timeout=1).json()["encoders"]["serving"])  # type: ignore[union-attr]
        return ""

    def gone(self, slot: Slot, worker: WorkerProcess, seconds: float = READY_S) -> int:
        """Wait until a process has ended. Returns its exit status."""
        wait_for(f"worker {slot.number} to end", lambda: worker.process.poll() is not None, seconds)
        return int(worker.process.returncode)

    def hit(self, slot: Slot, point: str, hit: Path, seconds: float) -> bool:
        """Wait until a fault point was hit, and disarm the point if it was not hit in time. Returns whether it was hit."""
        with contextlib.suppress(AssertionError):
            return bool(wait_for(f"{point} to be hit", hit.exists, seconds))
        slot.disarm(point)
        return False

    @contextlib.contextmanager
    def down(self, slot: Slot) -> Iterator[None]:
        """Suspend the restarts of a slot's worker while the context lasts."""
        slot.wanted = False
        try:
            yield
        finally:
            slot.wanted = slot.number < len(self.slots) - 1

    def settle(self) -> None:
        """Wait until users of late items are recomputed, which offsets do not show. Call it after everything is committed."""
        items = len(verify.latest(self.log("item-vectors")))

        def know() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return all(self.ready(s).metric("currents_items_known") >= items for s in self.slots if s.wanted)
            return False

        wait_for(f"every worker to know {items} items", know, READY_S)
        before, now = -1, self.published()
        while now != before:
            time.sleep(QUIET_S)
            before, now = now, self.published()

    def published(self) -> int:
        """Return the number of profiles published so far."""
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        tps = [TopicPartition(self.settings.topic("profiles"), p) for p in range(self.partitions)]
        try:
            return sum(consumer.end_offsets(tps).values())
        finally:
            consumer.close()

    def finish(self) -> dict[Path, set[int]]:
        """Stop the workers of a settled cluster. Returns data folder -> tablets that its worker owned."""
        self._over = True
        self._watch.join()
        self._look.join()
        running = [s for s in self.slots if s.alive]
        self.workers = [s.worker for s in running if s.worker]
        owned = {w.data_dir: tablets for w, tablets in self.owners().items()}
        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        for worker in self.workers:
            status = worker.exit()
            assert status == 0, f"worker {worker.name} ended with {status} on SIGTERM: {worker.says()[-1500:]}"
        return owned

    def stop(self) -> None:
        self._over = True
        self.brokers.network.cut(list(self.brokers.network.links), "open")
        for thread in (self._watch, self._look):
            if thread.is_alive():
                thread.join(5)
        self.workers = [s.worker for s in self.slots if s.worker]
        super().stop()
        for slot in self.slots:
            subprocess.run(["umount", "-l", str(slot.data_dir)], stderr=subprocess.DEVNULL, check=False)

    # Results in the logs

    def logs(self) -> Iterator[str]:
        for path in self.folder.glob("*.log"):
            yield path.read_text(errors="replace")

    def generations(self) -> int:
        """Return the number of group generations in which workers had tablets."""
        return len({g for text in self.logs() for g in GENERATION.findall(text)})

    def recovered(self) -> int:
        """Return the number of lost batches that workers detected and read again."""
        return sum(len(LOST.findall(text)) for text in self.logs())


def mounted(folder: Path) -> bool:
    """Mount a small file system on a folder. Returns whether this machine allows it."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SCRATCH_MB}m", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def empty(folder: Path) -> int:
    """Remove the content of a folder that may be a mount point. Returns the number of removed entries."""
    found = list(folder.iterdir())
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return len(found)


def last_words(worker: WorkerProcess) -> str:
    """Return a worker's last error line, else its last line, without numbers and paths, which differ between workers."""
    lines = [line for line in worker.says().splitlines() if line.strip()]
    mine = [line for line in lines if line.startswith("currents:")] or lines[-1:] or ["nothing"]
    return re.sub(r"\d+", "N", re.sub(r"/\S*/", "", mine[-1]))[:160]


def until(condition: Callable[[], Any], seconds: float) -> bool:
    """Wait until a condition holds. Returns False after `seconds`."""
    try:
        return bool(wait_for("it", condition, seconds))
    except AssertionError:
        return False
