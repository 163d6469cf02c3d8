"""Measures how long the profile changelog gets no rows when a worker joins, leaves or dies: `python -m tests.chaos.outages`.

Under an even load every tablet's partition gets rows all the time. A tablet's outage is its partition's longest silence around the event.
"""

import argparse
import math
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from testkit.apache import ApacheKafka, free_port
from testkit.cluster import Cluster, Load
from testkit.processes import WorkerProcess, wait_for

AFTER_MS = 20_000
"""Silences that begin later than this after an event are not attributed to the event."""
AGAIN_S = 0.5
Event = tuple[str, int, set[int]]
"""(kind of event, time in ms since the epoch, tablets of the worker that the event concerns)"""


def silence(times: Sequence[int], begin: int, end: int, stop: float = math.inf) -> float:
    """Return the longest time between two rows, ms, among the silences that end after `begin` and begin before `end`; without rows, all the time.

    `times`: sorted times of rows, ms. Time after `stop` does not count.
    """
    return max((min(b, stop) - a for a, b in pairwise(times) if b > begin and a < min(end, stop)), default=min(end, stop) - begin)


def outages(rows: Mapping[int, Sequence[int]], events: Sequence[Event]) -> dict[str, list[tuple[float, float]]]:
    """Return kind of event -> per event (longest silence of the worker's own tablets, of all other tablets), in seconds, before the next event."""
    found: dict[str, list[tuple[float, float]]] = {}
    for (what, at, own), stop in zip(events, [*(at for _, at, _ in events[1:]), math.inf], strict=True):
        quiet = {p: silence(times, at, at + AFTER_MS, stop) / 1000 for p, times in rows.items()}
        mine, others = [s for p, s in quiet.items() if p in own], [s for p, s in quiet.items() if p not in own]
        found.setdefault(what, []).append((max(mine, default=0.0), max(others, default=0.0)))
    return found


def measure(c: Cluster, rounds: int, rate: float, static: bool = False) -> dict[str, list[tuple[float, float]]]:
    """Run rounds in which one worker stays, while a second worker joins, leaves, restarts, is killed, or is killed and restarted at once.

    `static`: workers are static members of the group (`worker.instance`) and keep their addresses.
    """
    events: list[Event] = []
    ports = {name: str(free_port()) for name in "ab"}
    c.items(600)
    load = Load(c, events=10_000_000, rate=rate, users=2000)

    def start(name: str) -> WorkerProcess:
        named = {"CURRENTS_WORKER__INSTANCE": name, "CURRENTS_QUERY__PORT": ports[name]} if static else {}
        return c.worker(name, None, **named).ready()

    def settled(workers: int) -> None:
        wait_for("tablets to settle", lambda: len(c.owners()) == workers)
        time.sleep(AFTER_MS / 2000)

    def happens(what: str, end: Callable[[WorkerProcess], None], left: int, own: set[int]) -> None:
        events.append((what, time.time_ns() // 1_000_000, own))
        end(c.workers[-1])
        settled(left)

    def joins() -> set[int]:
        at = time.time_ns() // 1_000_000
        b = start("b")
        settled(2)
        own = b.owned()
        events.append(("joins", at, own))
        return own

    def leave(b: WorkerProcess) -> None:
        b.process.send_signal(signal.SIGTERM)
        b.exit()

    def restart(b: WorkerProcess) -> None:
        leave(b)
        start("b")

    def back(b: WorkerProcess) -> None:
        b.kill()
        time.sleep(AGAIN_S)
        start("b")

    a = start("a")
    settled(1)
    for _ in range(rounds):
        own = joins()
        happens("is restarted", restart, 2, own)
        happens("leaves (SIGTERM)", leave, 1, c.workers[-1].owned())
        own = joins()
        happens("dies, is back at once", back, 2, own)
        happens("dies (kill -9)", WorkerProcess.kill, 1, c.workers[-1].owned())
    load.stop()
    a.terminate()
    rows: dict[int, list[int]] = {}
    for record in c.log("profiles"):
        rows.setdefault(record.partition, []).append(record.timestamp)
    return outages({p: sorted(times) for p, times in rows.items()}, events)


def main() -> None:
    """Print the median and the worst figure of each kind of event."""
    p = argparse.ArgumentParser(prog="python -m tests.chaos.outages", description=__doc__)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--rate", type=float, default=800, help="events/s")
    p.add_argument("--static", action="store_true", help="static membership: workers have names in the group")
    p.add_argument("--session", type=float, default=6.0, help="seconds")
    options = p.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="currents-outages-"))
    with ApacheKafka() as kafka:
        c = Cluster(kafka.bootstrap, "outages", folder, {"worker": {"session_timeout_s": options.session}})
        try:
            found = measure(c, options.rounds, options.rate, options.static)
        finally:
            c.stop()
    shutil.rmtree(folder, ignore_errors=True)
    for what, pairs in found.items():
        own, others = zip(*pairs, strict=True)
        shown = [f"median {statistics.median(s):.1f} s, worst {max(s):.1f} s" for s in (own, others)]
        print(f"{what:24} its own tablets: {shown[0]}; all others: {shown[1]}", flush=True)


if __name__ == "__main__":
    main()
