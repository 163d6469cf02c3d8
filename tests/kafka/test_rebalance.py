"""Workers that join, leave, stand still and come back, under load."""

import time
from collections.abc import Callable

import pytest

from tests.kafka.cluster import RIGHT, Cluster, Load, wait_for

pytestmark = pytest.mark.kafka


def test_join_kill_return(cluster: Callable[..., Cluster]) -> None:
    """A second worker joins, the first is killed and comes back: everything equals the offline fold, and each tablet has one owner."""
    c = cluster()
    c.items()
    load = Load(c, events=60_000, rate=1500)
    a = c.worker("a").ready()
    time.sleep(3)
    b = c.worker("b").ready()
    time.sleep(6)
    a.kill()
    time.sleep(10)
    a = c.worker("a").ready()
    load.join()
    c.drain()
    owned = c.owners()
    assert owned[a]
    assert owned[b]
    assert a.terminate() == 0
    wait_for("the last worker to have every tablet", lambda: b.owned() == {0, 1, 2, 3})
    assert b.terminate() == 0
    assert c.check(b.data_dir, owned={a.data_dir: owned[a]}) == RIGHT
    assert len({(d.topic, d.partition, d.offset) for d in c.dead()}) == load.broken


@pytest.mark.parametrize("waits_s", [3, 12], ids=["within-the-session", "past-the-session"])
def test_stands_still(cluster: Callable[..., Cluster], waits_s: int) -> None:
    """A worker that stands still, until the group has given it up or not, writes nothing old when it goes on."""
    c = cluster()
    c.items()
    load = Load(c, events=60_000, rate=1500, users=6000)
    a, b = c.worker("a"), c.worker("b")
    c.owners()
    for worker in (a, b):
        time.sleep(2)
        worker.pause()
        time.sleep(waits_s)
        worker.go_on()
        time.sleep(5)
    load.join()
    c.drain()
    owned = c.owners()
    assert a.terminate() == 0
    wait_for("the last worker to have every tablet", lambda: b.owned() == {0, 1, 2, 3})
    assert b.terminate() == 0
    assert c.check(b.data_dir, owned={a.data_dir: owned[a]}) == RIGHT
