"""Workers whose files are spoiled."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from testkit.cluster import RIGHT, Cluster, wait_for
from tests.chaos.faults import spoil
from tests.streams.processes.test_kill import events

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("spoiled", ["tablet-*", "items"])
def test_damaged(cluster: Callable[..., Cluster], spoiled: str) -> None:
    """A worker that finds the files of a RocksDB spoiled ends, empties that one when it is back, reads it again, and ends right."""
    c = cluster(worker={"write_buffer_mb": 1})
    c.items()
    c.send(f"{c.prefix}.in.shop", events(12_000))
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    files = sorted(worker.data_dir.glob(f"{spoiled}/*.sst"))  # all: which of them holds windows, the ones that are read, is not in the name
    assert files
    for file in files:
        spoil(file, random.Random(1))
    again(c, worker.data_dir)
    c.send(f"{c.prefix}.in.shop", events(6000, seed=4))
    until_committed(c, worker.data_dir)
    assert "emptied now" in "".join(path.read_text() for path in c.folder.glob("a-*.log"))
    (last,) = [w for w in c.workers if w.process.poll() is None]
    assert last.terminate() == 0
    assert c.check(last.data_dir) == RIGHT


def again(c: Cluster, data_dir: Path) -> None:
    c.worker("a", data_dir=data_dir)


def until_committed(c: Cluster, data_dir: Path) -> None:
    """Until everything is committed; a worker that ends is started again, as a supervisor does."""

    def committed() -> bool:
        if all(w.process.poll() is not None for w in c.workers):
            again(c, data_dir)
        return c.lag() == 0

    wait_for("everything to be committed", committed)
