"""Every kind of fault: how to inject it, how to undo it, and the evidence that it happened."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import stamina

from schemas.releases import Release
from streams.core.errors import BrokerError
from streams.releases.release_log import announce
from tests.chaos.cluster import ChaosCluster, Slot, empty, until
from tests.chaos.load import Traffic
from tests.chaos.schedule import Fault

HIT_S = 150.0
STORM = 8_000
BALLAST = "ballast"


class Chaos:
    """Owns the injection of faults into a cluster under load. A fault's method returns the evidence that the fault happened; empty if it did not."""

    def __init__(self, cluster: ChaosCluster, traffic: Traffic) -> None:
        self.c, self.traffic = cluster, traffic
        self.kills = 0
        self.terms = 0
        self.swaps = 0
        self.serving: Release | None = None
        """The version on channel `serving` of the topic of releases; None while the channel is empty."""
        self._swapping = threading.Lock()

    def __call__(self, fault: Fault) -> str:
        method: Callable[[Fault, Slot], str] = getattr(self, fault.kind.replace("-", "_"))
        slot = self.c.slots[min(fault.slot, len(self.c.slots) - 1)]
        if fault.kind in ("broker", "leader", "poison", "storm", "all-gone", "swap"):  # these act on no single worker
            return method(fault, slot)
        with slot.lock:
            return method(fault, slot)

    def _kill(self, slot: Slot) -> str:
        worker = slot.worker
        if worker is None or not slot.alive:
            return ""
        tablets = sorted(slot.tablets)
        worker.process.kill()
        if self.c.gone(slot, worker) != -signal.SIGKILL:
            return ""
        self.kills += 1
        return f"killed with tablets {tablets}"

    def _term(self, slot: Slot) -> str:
        worker = slot.worker
        if worker is None or not slot.alive:
            return ""
        worker.process.terminate()
        status = self.c.gone(slot, worker)
        self.terms += 1
        return f"ended with {status}"

    def _wait_for_state(self, fault: Fault, slot: Slot) -> None:
        """Wait for the worker's state that the fault's way demands: `starting` means an early state."""
        if fault.way == "starting":
            until(lambda: slot.alive, HIT_S)
            time.sleep(fault.luck % 4000 / 1000)
        else:
            self.c.ready(slot)

    # Faults that end a worker

    def kill(self, fault: Fault, slot: Slot) -> str:
        self._wait_for_state(fault, slot)
        return self._kill(slot) or (until(lambda: slot.alive, HIT_S) and self._kill(slot)) or ""

    def term(self, fault: Fault, slot: Slot) -> str:
        self._wait_for_state(fault, slot)
        return self._term(slot) or (until(lambda: slot.alive, HIT_S) and self._term(slot)) or ""

    def kill_at(self, fault: Fault, slot: Slot) -> str:
        return self._at(slot, fault.way, "kill", fault.luck % 5)

    def term_at(self, fault: Fault, slot: Slot) -> str:
        return self._at(slot, fault.way, "term", fault.luck % 2)

    def _at(self, slot: Slot, point: str, what: str, passes: int) -> str:
        worker = self.c.ready(slot)
        hit = slot.arm(point, what, passes if point not in ("in-rebalance", "in-restore") else 0)
        if point == "in-rebalance":
            self._rebalance(hit)
        elif point == "in-restore":
            self._kill(slot)
            empty(slot.data_dir)
        if not self.c.hit(slot, point, hit, HIT_S):
            return ""
        if point == "in-restore":
            return f"SIG{what.upper()} {point}"
        status = self.c.gone(slot, worker)
        self.kills += status == -signal.SIGKILL
        self.terms += what == "term"
        return f"ended with {status} {point}"

    def kill_in_restore(self, fault: Fault, slot: Slot) -> str:
        self.c.ready(slot)
        hit = slot.arm("in-restore", "kill", int(fault.way))
        if not self._kill(slot):
            return ""
        empty(slot.data_dir)
        if not self.c.hit(slot, "in-restore", hit, HIT_S):
            return ""
        self.kills += 1
        return "killed, its folder emptied, killed again while restoring"

    def kill_in_rebalance(self, fault: Fault, slot: Slot) -> str:
        worker = self.c.ready(slot)
        hit = slot.arm("in-rebalance", "kill", int(fault.way))
        self._rebalance(hit)
        if not self.c.hit(slot, "in-rebalance", hit, HIT_S):
            return ""
        status = self.c.gone(slot, worker)
        self.kills += status == -signal.SIGKILL
        return f"ended with {status} while partitions moved"

    def _rebalance(self, hit: Path) -> None:
        """Make the group rebalance until a fault point was hit: start and stop the joining worker."""
        joiner = self.c.slots[-1]
        deadline = time.monotonic() + HIT_S
        while not hit.exists() and time.monotonic() < deadline:
            if not joiner.lock.acquire(timeout=1):  # another fault uses the joiner
                continue
            try:
                if joiner.alive:
                    self._leave(joiner)
                else:
                    joiner.wanted = True
                    until(lambda: hit.exists() or bool(joiner.alive and joiner.tablets), HIT_S / 2)
            finally:
                joiner.lock.release()
            until(hit.exists, 5)

    def all_gone(self, fault: Fault, slot: Slot) -> str:
        done = []
        slots = [s for s in self.c.slots if s.wanted]
        for s in slots:
            s.lock.acquire()
        try:
            for s in slots:
                s.wanted = False
                done.append(bool(self._kill(s) if fault.way == "kill" else self._term(s)))
            time.sleep(fault.seconds)
        finally:
            for s in slots:
                s.wanted = s.number < len(self.c.slots) - 1
                s.lock.release()
        return f"{sum(done)} workers gone for {fault.seconds} s" if done and not any(s.alive for s in slots) else ""

    # Faults that pause, join or reconfigure a worker

    def stop(self, fault: Fault, slot: Slot) -> str:
        worker = self.c.ready(slot)
        slot.paused = True
        worker.pause()
        return self._pause(fault, slot)

    def stop_at(self, fault: Fault, slot: Slot) -> str:
        self.c.ready(slot)
        hit = slot.arm(fault.way, "stop", fault.luck % 3 if fault.way != "in-rebalance" else 0)
        if fault.way == "in-rebalance":
            self._rebalance(hit)
        if not self.c.hit(slot, fault.way, hit, HIT_S):
            return ""
        slot.paused = True
        return self._pause(fault, slot)

    def _pause(self, fault: Fault, slot: Slot) -> str:
        worker = slot.worker
        assert worker is not None
        stopped = until(lambda: state(worker.process.pid) == "T", 5)
        time.sleep(fault.seconds)
        worker.go_on()
        slot.paused = False
        return f"stood still for {fault.seconds} s" if stopped else ""

    def join(self, fault: Fault, slot: Slot) -> str:
        if slot.alive:
            self._term(slot)
        slot.wanted = True
        try:
            worker = self.c.ready(slot)
            tablets = worker.owned()
            time.sleep(fault.seconds)
            return f"had tablets {sorted(tablets)}, " + self._leave(slot) if tablets else ""
        finally:
            slot.wanted = False

    def _leave(self, slot: Slot) -> str:
        slot.wanted = False
        return self._term(slot)

    def encoder(self, fault: Fault, slot: Slot) -> str:
        with self.c.down(slot):
            self._term(slot)
            names = self.c.encoders
            before = slot.environment["CURRENTS_ENCODING__ENCODER"]
            slot.environment["CURRENTS_ENCODING__ENCODER"] = names[(names.index(before) + 1) % len(names)]
        self.c.ready(slot)
        return f"now encodes with {Path(slot.environment['CURRENTS_ENCODING__ENCODER']).name}"

    def swap(self, fault: Fault, slot: Slot) -> str:
        with self._swapping:
            if fault.luck % 3 == 0:  # a release that is withdrawn before a worker can load it
                self._announce(self.c.releases["v1" if fault.way == "v3" else "v3"])
            self._announce(self.c.releases[fault.way])
            began, version = time.monotonic(), self.c.releases[fault.way].version
            if not until(lambda: {self.c.serves(s) for s in self.c.slots if s.wanted} == {version}, HIT_S):
                return ""
            self.swaps += 1
            return f"{version} serves everywhere after {time.monotonic() - began:.1f} s"

    def _announce(self, release: Release) -> None:
        s = self.c.settings
        for attempt in stamina.retry_context(on=BrokerError, attempts=20, wait_max=5, timeout=HIT_S):  # the broker may be down
            with attempt:
                asyncio.run(announce(s.kafka, s.topic("releases"), "serving", release))
        self.serving = release

    # Faults of a worker's disk

    def emptied(self, fault: Fault, slot: Slot) -> str:
        self.c.ready(slot)
        with self.c.down(slot):
            killed = self._kill(slot)
            return f"{empty(slot.data_dir)} folders removed" if killed else ""

    def corrupt(self, fault: Fault, slot: Slot) -> str:
        self.c.ready(slot)
        with self.c.down(slot):
            return (
                damage(slot.data_dir, fault.way, fault.luck) if self._term(slot) else ""
            )  # SIGTERM instead of a kill, because a stopping worker writes files

    def full_disk(self, fault: Fault, slot: Slot) -> str:
        worker = self.c.ready(slot)
        if os.path.ismount(slot.data_dir):
            fill(slot.data_dir / BALLAST)
        else:
            worker.limit_files(4096)
        ended = until(lambda: worker.process.poll() is not None, HIT_S)
        time.sleep(fault.seconds)
        (slot.data_dir / BALLAST).unlink(missing_ok=True)
        return f"ended with {worker.process.returncode}: {worker.says().strip().splitlines()[-1][-90:]}" if ended else ""

    # Faults of brokers and of the network

    def broker(self, fault: Fault, slot: Slot) -> str:
        brokers = self.c.brokers
        with brokers.lock:
            k = fault.slot % len(brokers.nodes)
            brokers.stop(k, fault.way)
            time.sleep(fault.seconds)
            brokers.start(k)
        return f"down for {fault.seconds} s"

    def leader(self, fault: Fault, slot: Slot) -> str:
        s = self.c.settings
        names = [p.topic for p in s.platforms] + [s.topic(n) for n in ("events", "windows", "profiles", "item-vectors")] + ["__consumer_offsets"]
        with self.c.brokers.lock:
            moved = self.c.brokers.move_leaders(names, 1 + fault.luck % 2)
        return f"{moved} partitions have other leaders" if moved else ""

    def cut(self, fault: Fault, slot: Slot) -> str:
        return self._cut(fault, [(slot.number, k) for k in range(len(self.c.brokers.nodes))])

    def cut_one(self, fault: Fault, slot: Slot) -> str:
        return self._cut(fault, [(slot.number, fault.luck % len(self.c.brokers.nodes))])

    def _cut(self, fault: Fault, links: list[tuple[int, int]]) -> str:
        network = self.c.brokers.network
        began, before = time.monotonic(), sum(network.links[link].held for link in links)

        def held() -> int:
            return sum(network.links[link].held for link in links) - before

        network.cut(links, fault.way)
        time.sleep(fault.seconds)
        until(held, HIT_S)  # the worker may still be starting
        network.cut(links, "open")
        return f"{held()} connections met it in {time.monotonic() - began:.1f} s" if held() else ""

    # Faults of the clock and of events

    def clock(self, fault: Fault, slot: Slot) -> str:
        worker = self.c.ready(slot)
        file = slot.faults / "clock"
        file.write_text(fault.way)
        time.sleep(fault.seconds)
        file.unlink()
        return f"off by {int(fault.way) / 1000:.0f} s, worker {'lived' if worker.process.poll() is None else 'ended'}"

    def poison(self, fault: Fault, slot: Slot) -> str:
        return f"{self.traffic.poison(random.Random(fault.luck))} records that nobody can use"

    def storm(self, fault: Fault, slot: Slot) -> str:
        return f"{self.traffic.storm(f'u{fault.luck % 50}', STORM, fault.luck)} events of one user"


def state(pid: int) -> str:
    """Return a process's state in Linux: R, S, T (stopped)…"""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def fill(file: Path) -> None:
    """Write to a file until the disk is full."""
    with file.open("wb", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while ballast.write(bytes(size)):
                    pass
            except OSError:
                continue


def damage(data_dir: Path, what: str, luck: int) -> str:
    """Damage a file of a RocksDB database. Returns a description."""
    r = random.Random(luck)
    folder, name = ("items", "*.sst") if what == "items" else ("tablet-*", "MANIFEST-*" if what == "manifest" else "*.sst")
    files = sorted(p for p in data_dir.glob(f"{folder}/{name}") if p.stat().st_size > 64)
    if not files:
        return ""
    file = r.choice(files)
    if what == "gone":
        file.unlink()
        return f"{file.relative_to(data_dir)} removed"
    if what == "half":
        os.truncate(file, file.stat().st_size // 2)
        return f"{file.relative_to(data_dir)} cut off"
    spoil(file, r)
    return f"{file.relative_to(data_dir)} spoiled"


def spoil(file: Path, r: random.Random) -> None:
    """Overwrite some bytes in every 4 KiB of a file."""
    size = file.stat().st_size
    with file.open("r+b") as spoiled:
        for block in range(0, size - 8, 4096):
            spoiled.seek(block + r.randrange(min(4096, size - block - 8)))
            spoiled.write(r.randbytes(8))
