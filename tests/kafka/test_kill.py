"""Workers that die and come back, under load."""

import shutil
import time
from collections.abc import Callable

import pytest

from tests.kafka.cluster import RIGHT, Cluster, Load

pytestmark = pytest.mark.kafka


def test_three_kills(cluster: Callable[..., Cluster]) -> None:
    """After three kill -9 under load everything equals the offline fold of the log, and SIGTERM ends the worker cleanly."""
    c = cluster()
    c.items()
    load = Load(c, events=70_000, rate=2000)
    for life in range(3):
        worker = c.worker("a").ready()
        time.sleep(2 + life / 2)
        assert load.is_alive()
        worker.kill()
    worker = c.worker("a").ready()
    load.join()
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT
    assert len({(d.topic, d.partition, d.offset) for d in c.dead()}) == load.broken


def test_emptied_folder(cluster: Callable[..., Cluster]) -> None:
    """A worker whose data folder was emptied rebuilds its tablets from the changelogs."""
    c = cluster()
    c.items(100)
    load = Load(c, events=6000, rate=6000)
    load.join()
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    shutil.rmtree(worker.data_dir)
    worker = c.worker("a").ready()
    assert worker.metric("currents_restored_rows_total") > 0
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT


def test_killed_while_restoring(cluster: Callable[..., Cluster]) -> None:
    """A worker killed in the middle of its restore starts over and ends right."""
    c = cluster()
    load = Load(c, events=20_000, rate=20_000, users=6000)
    worker = c.worker("a")
    load.join()
    worker.ready()
    c.drain()
    assert worker.terminate() == 0
    shutil.rmtree(worker.data_dir)
    for seconds in (1.2, 1.6, 2.0):
        worker = c.worker("a")
        time.sleep(seconds)
        worker.kill()
    worker = c.worker("a").ready()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT
