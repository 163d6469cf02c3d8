"""Workers that join and leave, under load."""

import time
from collections.abc import Callable

import pytest

from streams.tablets import Tablet
from tests.kafka.cluster import RIGHT, Cluster, Load

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
    shared = {w: set(range(4)) & owned(w.url) for w in (a, b)}
    assert sorted(p for owned_by in shared.values() for p in owned_by) == [0, 1, 2, 3]
    assert a.terminate() == 0
    c.drain()
    assert b.terminate() == 0
    assert c.check() == RIGHT


def owned(url: str) -> set[int]:
    import httpx

    return set(httpx.get(f"{url}/readyz", timeout=5).json()["tablets"])


def test_ahead_of_the_changelog(cluster: Callable[..., Cluster]) -> None:
    """Rows that a killed worker had in RocksDB but never published reach the changelog with the replay."""
    c = cluster()
    load = Load(c, events=3000, rate=3000)
    worker = c.worker("a").ready()
    load.join()
    c.drain()
    worker.terminate()
    for path in worker.data_dir.glob("tablet-*"):
        tablet = Tablet(0, path)
        tablet.write([(b"u-never-published", b"\x01" + bytes(32))], [(b"u-never-published", b"")])
        rows = dict(tablet.scan("windows"))
        tablet.write([(user, window[:1] + window[33:]) for user, window in rows.items() if len(window) > 65])
        tablet.write([(b"u-never-published", None)], [(b"u-never-published", None)])
        tablet.close()
    more = Load(c, events=3000, rate=3000, seed=8)
    worker = c.worker("a").ready()
    more.join()
    c.drain()
    worker.terminate()
    assert c.check()["not_committed"] == 0
