"""Workers that die and come back, under load."""

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from streams.audit import windows as verify
from streams.processes.worker import running
from streams.state.tablet import Tablet
from streams.transport.sender import Sender
from testkit.cluster import QUOTAS, RIGHT, WAIT_S, Cluster, Load, WorkerProcess
from testkit.load import plain

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("encoding", [{}, QUOTAS], ids=["newest", "quotas"])
def test_three_kills(cluster: Callable[..., Cluster], encoding: dict[str, int]) -> None:
    """After three kill -9 under load everything equals the offline fold of the log, and SIGTERM ends the worker cleanly."""
    c = cluster(encoding=encoding)
    c.items()
    load = Load(c, events=10_000_000, rate=1500)
    for life in range(3):
        worker = c.worker("a").ready()
        time.sleep(2 + life / 2)
        worker.kill()
    worker = c.worker("a").ready()
    load.stop()
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT
    assert len({(d.topic, d.partition, d.offset) for d in c.dead()}) == load.broken


def test_killed_before_the_first_commit(cluster: Callable[..., Cluster]) -> None:
    """A worker killed before its group ever committed an offset loses nothing: the next one reads from the log's start."""
    c = cluster(worker={"commit_interval_s": 600.0})
    c.items()
    c.send(f"{c.prefix}.in.shop", events(20_000))
    worker = c.worker("a").ready()
    time.sleep(1)
    worker.kill()
    worker = c.worker("b", CURRENTS_WORKER__COMMIT_INTERVAL_S="1").ready()
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT


def test_emptied_folder(cluster: Callable[..., Cluster]) -> None:
    """A worker whose data folder was emptied rebuilds its tablets from the changelogs."""
    c = cluster()
    c.items(100)
    c.send(f"{c.prefix}.in.shop", events(6000))
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    shutil.rmtree(worker.data_dir)
    worker = c.worker("a").ready()
    assert worker.metric("currents_restored_rows_total") > 0
    assert worker.metric("currents_folded_total") == 0
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT


def test_killed_while_restoring(cluster: Callable[..., Cluster]) -> None:
    """A worker killed in the middle of its restore goes on from there and ends right."""
    c = cluster()
    c.send(f"{c.prefix}.in.shop", events(120_000, users=30_000))
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    everything = len(c.log("windows")) + len(c.log("profiles"))
    shutil.rmtree(worker.data_dir)
    partly = 0
    for _ in range(3):
        worker = c.worker("a")
        partly += restoring(worker, everything)
        worker.kill()
    assert partly
    worker = c.worker("a").ready()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT


def restoring(worker: WorkerProcess, everything: int) -> bool:
    """Wait until some rows were restored; whether it was not all of them."""
    rows, deadline = 0.0, time.monotonic() + WAIT_S
    while not rows and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            rows = worker.metric("currents_restored_rows_total")
    return 0 < rows < everything


@pytest.mark.parametrize("fails", ["windows", "profiles"])
def test_ahead_of_the_changelog(cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Rows that a dead worker had in RocksDB but had not published reach the changelog with the replay, though it changes nothing."""
    c = cluster(query={"port": 0})
    c.items()
    c.send(f"{c.prefix}.in.shop", events(5000))
    send = Sender.send

    async def dies(self: Sender, topic: str, parts: dict[int, Any]) -> dict[int, int]:
        if topic == c.settings.topic(fails) and parts:
            raise ConnectionError("the worker dies here")
        return await send(self, topic, parts)

    async def until_it_dies() -> None:
        monkeypatch.setattr(Sender, "send", dies)
        async with running(c.settings) as worker, asyncio.timeout(WAIT_S):
            with pytest.raises(ConnectionError):
                await worker.failed
        monkeypatch.undo()

    asyncio.run(until_it_dies())
    ahead = sum(verify.wrong(verify.latest(c.log(fails)), rows) for rows in [stored(c, fails)])
    assert ahead > 0
    worker = c.worker("a", data_dir=c.folder / "data").ready()
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT


def stored(c: Cluster, table: str) -> dict[bytes, bytes]:
    """All rows of a table in the data folder of a worker that has stopped."""
    rows: dict[bytes, bytes] = {}
    for path in (c.folder / "data").glob("tablet-*"):
        tablet = Tablet(0, path)
        rows |= tablet.scan(table)
        tablet.close()
    return rows


def events(n: int, users: int = 2000, seed: int = 3) -> list[bytes]:
    """Plain events of the last minutes, one ms apart."""
    r, now = random.Random(seed), time.time_ns() // 1_000_000
    return [plain(r, f"e{k}", now - n + k, users) for k in range(n)]
