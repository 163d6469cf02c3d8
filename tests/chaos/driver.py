"""Runs a schedule: cluster, load, faults, drain, checks."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kafka.errors import KafkaError

from encoder.towers import load_tower
from schemas.releases import Release
from testkit.bundles import variant
from tests.chaos.brokers import Brokers
from tests.chaos.checks import check
from tests.chaos.cluster import ChaosCluster
from tests.chaos.faults import Chaos
from tests.chaos.load import Traffic
from tests.chaos.schedule import Fault

AT_ONCE = 3
SETTLE_S = 8.0
WRONG = (
    "windows_wrong", "profiles_wrong", "changelog_wrong", "offsets_wrong", "dead_letters_missing", "dead_letters_wrong",
    "vectors_wrong", "vectors_not_checked", "unknown_releases", "mixed_space_pairs", "not_over",
)  # fmt: skip
REPORTED = (
    "kills", "rebalances", "broker_stops", "events", "windows_wrong", "profiles_wrong", "changelog_wrong", "offsets_wrong", "lost_batches_recovered",
    "swaps", "mixed_space_pairs",
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """Owns the parameters of a run, except its faults."""

    workers: int = 3
    brokers: int = 3
    rate: float = 500
    users: int = 3000
    partitions: int = 6
    seed: int = 1
    rebalances: int = 0


@dataclass
class Outcome:
    """Owns the result of one fault. `shown` is the evidence that the fault happened; empty if it did not."""

    fault: Fault
    at_s: float
    took_s: float
    shown: str

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} s  {self.fault!s:34} {self.took_s:5.1f} s  {self.shown or 'DID NOT HAPPEN'}"


@dataclass
class Result:
    """Owns the result of a run."""

    figures: dict[str, int]
    outcomes: list[Outcome] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    failure: str = ""

    def missed(self) -> list[Outcome]:
        """Faults that did not happen."""
        return [o for o in self.outcomes if not o.shown]

    def wrong(self) -> bool:
        """Whether a check failed or the cluster did not settle."""
        return bool(self.failure) or any(self.figures.get(name) for name in WRONG)


def run(faults: Sequence[Fault], setup: Setup, say: Callable[[str], None] = print, keep: Path | None = None) -> Result:
    """Run a schedule. Keeps logs and data in `keep` if given, and those of a failed run in any case."""
    folder = keep or Path(tempfile.mkdtemp(prefix="currents-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    encoders = ["baseline", *([bundle(folder / "bundle")] if any(f.kind == "encoder" for f in faults) else [])]
    releases = bundles(folder / "releases") if any(f.kind == "swap" for f in faults) else {}
    follows = {"follow": "on" if releases else "auto", "retry_s": 1}
    result = Result({})
    worker = {"partitions": setup.partitions, "write_buffer_mb": 1}  # small, so that RocksDB writes files all the time
    try:
        with Brokers(folder, setup.brokers, setup.workers + 1) as brokers:
            cluster = ChaosCluster(brokers, f"chaos{setup.seed}", folder, setup.workers, encoders, releases, worker=worker, releases=follows)
            try:
                cluster.configure(cluster.settings.topic("item-vectors"), {"message.timestamp.type": "LogAppendTime"})  # workers' clocks jump
                _run(cluster, faults, setup, say, result)
            finally:
                cluster.stop()
                result.ended = dict(cluster.ended)
    except (AssertionError, RuntimeError, OSError, KafkaError) as error:
        result.failure = f"{type(error).__name__}: {error}"
    finally:
        if keep is None and not result.wrong():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"logs and data: {folder}")
    return result


def _run(cluster: ChaosCluster, faults: Sequence[Fault], setup: Setup, say: Callable[[str], None], result: Result) -> None:
    traffic = Traffic(cluster, setup.rate, setup.users, setup.seed)
    chaos = Chaos(cluster, traffic)
    began = time.monotonic()

    def one(fault: Fault) -> None:
        at = time.monotonic()
        try:
            shown = chaos(fault)
        except Exception as error:
            shown = ""
            say(f"{fault}: {type(error).__name__}: {error}")
        finally:
            slots.release()
        result.outcomes.append(Outcome(fault, at - began, time.monotonic() - at, shown))
        say(str(result.outcomes[-1]))

    cluster.run(setup.workers)
    for slot in cluster.slots[: setup.workers]:
        cluster.ready(slot)
    traffic.start()
    slots, threads = threading.Semaphore(AT_ONCE), list[threading.Thread]()
    for fault in faults:
        time.sleep(fault.after_s)
        slots.acquire()
        threads.append(threading.Thread(target=one, args=(fault,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    while cluster.generations() < setup.rebalances:
        slots.acquire()
        one(Fault("join", 0, 1, setup.workers))
    say(f"{time.monotonic() - began:7.1f} s  faults are over")
    for slot in cluster.slots:
        if slot.wanted:
            cluster.ready(slot)
    time.sleep(SETTLE_S)
    traffic.stop()
    began_drain = time.monotonic()
    cluster.drain()
    cluster.settle()
    say(f"drained in {time.monotonic() - began_drain:.1f} s")
    figures = result.figures
    figures |= {"kills": chaos.kills, "broker_stops": cluster.brokers.stops, "terms": chaos.terms, "swaps": chaos.swaps}
    owned = cluster.finish()
    figures |= {"offsets_wrong": cluster.lag(), "rebalances": cluster.generations(), "lost_batches_recovered": cluster.recovered()}
    encoders = [*cluster.encoders, *(r.bundle for r in cluster.releases.values() if r.bundle)]
    served = chaos.serving.version if chaos.serving else None
    figures |= check(cluster.settings, owned, encoders, cluster.folder, say, served) | {"starts": cluster.starts}


def bundles(folder: Path) -> dict[str, Release]:
    """Return the release of each way of `swap`: two releases of one space, one of another space, and the baseline."""
    v1 = variant(folder / "v1", "v1", 1, space_id="space-a")
    v2 = variant(folder / "v2", "v2", 2, 0.1, folder / "v1", space_id="space-a")
    v3 = variant(folder / "v3", "v3", 3, space_id="space-b")
    day_0 = Release("baseline-3", load_tower("static").space_id, "", "", "serving", 1.0, "", 1, "chaos", "")
    return {"v1": v1, "v2": v2, "v3": v3, "baseline": day_0}


def bundle(folder: Path) -> str:
    """Export an untrained encoder of the smallest preset. Returns its bundle."""
    import torch

    from encoder.config import preset
    from encoder.model import SequenceEncoder
    from encoder.towers import load_tower
    from training.export import export

    torch.manual_seed(0)
    tower = load_tower("static")
    model = SequenceEncoder(preset("xs", tower.dims, max_len=32))
    torch.nn.init.normal_(model.out.weight, std=0.05)
    return str(export(model, folder, tower.space_id, "xs").folder)
