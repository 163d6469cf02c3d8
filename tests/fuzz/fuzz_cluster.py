"""Random and mutated rows into every topic of a running cluster, under load; then windows and profiles against the offline fold of what is valid.

python -m tests.fuzz.fuzz_cluster --seconds 600

Rows are drawn by hypothesis from a small corpus (`corpus/<topic>/`, values alone) and from what the cluster itself has written. A row that a reader
of a compacted topic may take for good is not sent: nobody could tell it from our own.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import orjson
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from schemas.rows import bad_items, bad_profiles, bad_windows
from streams.demo.embedded_broker import embedded
from streams.ingest.dead_letter_log import dead_letters
from streams.ingest.redrive import redrive
from streams.releases.release_log import announced
from testkit import hostile
from testkit.checking import compare, usable
from testkit.cluster import Cluster, Load, WorkerProcess, wait_for

CORPUS = Path(__file__).with_name("corpus")
BAD = {"windows": bad_windows, "profiles": bad_profiles, "item-vectors": bad_items}
OWN = (*BAD, "releases", "events", "dead-letters", "redriven")
LOT = 200  # rows of a topic that are written at once
RATE = 200.0  # events a second beside them
SAMPLE = 50  # good rows of a topic that are mutated


def corpus(topic: str) -> list[bytes]:
    """The values kept for a topic, those for any topic included."""
    return [path.read_bytes() for name in ("any", topic) for path in sorted((CORPUS / name).glob("*.bin"))]


class Values(list[bytes]):
    """Values that hypothesis does not print: it would take longer than to draw of them."""

    def __repr__(self) -> str:
        return f"{len(self)} values"


@st.composite
def mutants(draw: st.DrawFn, values: Sequence[bytes]) -> bytes:
    """A value with some bytes changed, cut, repeated or put in."""
    value = bytearray(values[draw(st.integers(0, len(values) - 1))])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(value))))
        how = draw(st.sampled_from(("set", "cut", "insert", "repeat")))
        if how == "set" and at < len(value):
            value[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del value[at : at + draw(st.integers(1, 40))]
        elif how == "insert":
            value[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            value[at:at] = value[max(0, at - 32) : at]
    return bytes(value)


def drawn(good: Sequence[tuple[bytes | None, bytes]], values: Sequence[bytes], seed: int) -> list[hostile.Row]:
    """LOT rows, the same for the same arguments."""
    keys, kept = [*hostile.KEYS, b"run", b"serving", b"nobody", *(key for key, _ in good)], Values([*values, *(value for _, value in good)])
    strategy = st.tuples(st.integers(0, len(keys) - 1).map(keys.__getitem__) | st.binary(max_size=12), mutants(kept) | st.binary(max_size=64))
    found: list[hostile.Row] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=LOT, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @hypothesis.given(strategy)
    def draw(row: hostile.Row) -> None:
        found.append(row)

    draw()
    return found


def sent(topic: str, rows: Sequence[hostile.Row]) -> Iterator[hostile.Row]:
    """The rows that no reader may take for good; of topics that are not compacted, and whose rows are told by their content, all."""
    wrong = BAD[topic](rows) if topic in BAD else {}
    for n, (key, value) in enumerate(rows):
        if topic in BAD and n not in wrong:
            continue
        if topic == "releases" and not announced(0, key, value).problem:
            continue
        yield key, value


class Fuzz:
    """Owns the cluster that is fuzzed, and what is written to it."""

    def __init__(self, bootstrap: str, folder: Path, seed: int) -> None:
        self._seed, self._round, self.rows = seed, 0, 0
        self.cluster = Cluster(bootstrap, f"fuzz{time.time_ns()}", folder, {"serve": {"items": True}})
        self._values = {topic: corpus(topic) for topic in OWN}
        self._good: dict[str, list[tuple[bytes | None, bytes]]] = {topic: [] for topic in OWN}

    def run(self, seconds: float) -> dict[str, int]:
        """Fuzz for so long; how many rows are wrong afterwards, by kind."""
        c = self.cluster
        c.items(200)
        load = Load(c, 10**9, RATE, users=300, seed=self._seed)
        worker, replica = c.worker("a").ready(), c.replica("r").ready()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._round % 20 == 0:
                self._sample()
            self._write()
            for process in (worker, replica):
                assert process.get("/healthz").json()["status"] != "failed", process.says()[-3000:]
        load.stop()
        quiet(worker)
        assert worker.terminate() == 0
        shutil.rmtree(worker.data_dir)
        worker = c.worker("a").ready()  # from the changelogs alone, and with what it finds in them
        quiet(worker)
        wait_for("the replica", replica.is_ready)
        assert (worker.terminate(), replica.terminate()) == (0, 0)
        list(dead_letters(c.settings))
        asyncio.run(redrive(c.settings, True, True, lambda n: None))
        return compare(c.settings, {worker.data_dir: set(range(c.partitions))}, c.folder)

    def _sample(self) -> None:
        for topic in OWN:
            records = [r for r in self.cluster.log(topic)[-2000:] if r.value] if topic != "releases" else []
            good = usable(records, BAD[topic]) if topic in BAD else records
            self._good[topic] = [(r.key, r.value) for r in good[:: max(1, len(good) // SAMPLE)]]

    def _write(self) -> None:
        c = self.cluster
        for n, topic in enumerate(OWN):
            rows = drawn(self._good[topic], self._values[topic], hash((self._seed, self._round, n)))
            partitions = 1 if topic == "releases" else c.partitions
            self.rows += asyncio.run(hostile.write(c.settings, c.settings.topic(topic), sent(topic, rows), partitions))
        event = orjson.dumps({"account": "u1", "item": "i1", "behavior": "view", "time": time.time_ns() // 1_000_000, "id": f"f{self._round}"})
        self.rows += c.send(f"{c.prefix}.in.shop", (value for _, value in drawn([], [event, *corpus("platform")], self._seed + self._round)))
        self._round += 1


def quiet(worker: WorkerProcess) -> None:
    """Wait until a worker has nothing left to do."""
    seen: list[tuple[float, ...]] = []

    def still() -> bool:
        names = ("currents_profiles_total", "currents_folded_total", "currents_events_total", "currents_rejected_rows_total")
        seen.append(tuple(worker.metric(name) for name in names))
        time.sleep(0.3)
        return (
            worker.is_ready()
            and not worker.metric("currents_lag_records")
            and not worker.metric("currents_late_items")
            and len(set(seen[-8:])) == 1 < len(seen[-8:])
        )

    wait_for("the worker to come to rest", still)


def main() -> int:
    """Status 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with embedded() as bootstrap, tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(bootstrap, Path(folder), given.seed)
        try:
            wrong: dict[str, Any] = fuzz.run(given.seconds)
        finally:
            fuzz.cluster.stop()
    print(f"{fuzz.rows} rows in {given.seconds:g} s, seed {given.seed}: {wrong}")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
