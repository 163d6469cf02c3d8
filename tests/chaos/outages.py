"""How long readers of the profile changelog see nothing new when a worker joins, leaves or dies: `python -m tests.chaos.outages`.

Under an even load every tablet's partition gets rows all the time; the longest silence around an event is how long it was out.
"""

import argparse
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from tests.apache import ApacheKafka
from tests.kafka.cluster import Cluster, Load
from tests.kafka.processes import WorkerProcess, wait_for

AFTER_MS = 20_000
"""Silences that begin later after an event are not its doing."""
AGAIN_S = 0.5
Event = tuple[str, int, set[int]]
"""What happened, when (ms since the epoch), and which tablets were the worker's that it happened to."""


def silence(times: Sequence[int], begin: int, end: int) -> int:
    """The longest time between two rows, ms, of those that ends after `begin` and begins before `end`; all of it where there are none.

    `times` in order, ms.
    """
    return max((b - a for a, b in pairwise(times) if b > begin and a < end), default=end - begin)


def outages(rows: Mapping[int, Sequence[int]], events: Iterable[Event]) -> dict[str, list[tuple[float, float]]]:
    """Kind of event -> for each of them the seconds without rows: the worst of the worker's own tablets, and the worst of all others."""
    found: dict[str, list[tuple[float, float]]] = {}
    for what, at, own in events:
        quiet = {p: silence(times, at, at + AFTER_MS) / 1000 for p, times in rows.items()}
        mine, others = [s for p, s in quiet.items() if p in own], [s for p, s in quiet.items() if p not in own]
        found.setdefault(what, []).append((max(mine, default=0.0), max(others, default=0.0)))
    return found


def measure(c: Cluster, rounds: int, rate: float) -> dict[str, list[tuple[float, float]]]:
    """Rounds of: a worker joins, leaves, joins, is killed, comes back, is killed and back at once; another stays."""
    events: list[Event] = []
    c.items(600)
    load = Load(c, events=10_000_000, rate=rate, users=2000)
    a = c.worker("a").ready()

    def with_b(what: str, end: Callable[[WorkerProcess], None], left: int) -> None:
        """A second worker, which gets tablets, and what becomes of it then."""
        joined = time.time_ns() // 1_000_000
        b = c.worker("b").ready()
        settled(2)
        events.append(("joins", joined, set()))
        events.append((what, time.time_ns() // 1_000_000, b.owned()))
        end(b)
        settled(left)

    def settled(workers: int) -> None:
        wait_for("tablets to settle", lambda: len(c.owners()) == workers)
        time.sleep(AFTER_MS / 2000)

    def leave(b: WorkerProcess) -> None:
        b.process.send_signal(signal.SIGTERM)
        b.exit()

    def back(b: WorkerProcess) -> None:
        b.kill()
        time.sleep(AGAIN_S)
        c.worker("b").ready()

    settled(1)
    for _ in range(rounds):
        with_b("leaves (SIGTERM)", leave, 1)
        with_b("dies (kill -9)", WorkerProcess.kill, 1)
        with_b("dies, is back at once", back, 2)
        c.workers[-1].terminate()
        settled(1)
    load.stop()
    a.terminate()
    rows: dict[int, list[int]] = {}
    for record in c.log("profiles"):
        rows.setdefault(record.partition, []).append(record.timestamp)
    return outages({p: sorted(times) for p, times in rows.items()}, events)


def main() -> None:
    """Print medians and worst figures, a line a kind."""
    p = argparse.ArgumentParser(prog="python -m tests.chaos.outages", description=__doc__)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--rate", type=float, default=800, help="events/s")
    p.add_argument("--session", type=float, default=6.0, help="seconds")
    options = p.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="currents-outages-"))
    with ApacheKafka() as kafka:
        c = Cluster(kafka.bootstrap, "outages", folder, {"worker": {"session_timeout_s": options.session}})
        try:
            found = measure(c, options.rounds, options.rate)
        finally:
            c.stop()
    shutil.rmtree(folder, ignore_errors=True)
    for what, pairs in found.items():
        own, others = zip(*pairs, strict=True)
        shown = [f"median {statistics.median(s):.1f} s, worst {max(s):.1f} s" for s in (own, others)]
        print(f"{what:24} its own tablets: {shown[0]}; all others: {shown[1]}", flush=True)


if __name__ == "__main__":
    main()
