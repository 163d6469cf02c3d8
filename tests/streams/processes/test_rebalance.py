"""Workers that join, leave, stand still and come back, under load."""

import random
import time
from collections.abc import Callable

import pytest
from kafka import KafkaProducer

from streams.audit import windows as verify
from testkit.apache import free_port
from testkit.cluster import QUOTAS, RIGHT, Cluster, Load, WorkerProcess, wait_for
from testkit.load import plain

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
    ends_right(c, a, b)
    assert len({(d.topic, d.partition, d.offset) for d in c.dead()}) == load.broken


def test_named(cluster: Callable[..., Cluster]) -> None:
    """A worker with a name of its own that dies and is back within the session goes on without a rebalance; everything equals the offline fold."""
    c = cluster(worker={"session_timeout_s": 30.0})
    c.items()
    load = Load(c, events=40_000, rate=1500)
    ports = {name: str(free_port()) for name in "ab"}

    def start(name: str) -> WorkerProcess:
        return c.worker(name, CURRENTS_WORKER__INSTANCE=name, CURRENTS_QUERY__PORT=ports[name]).ready()

    a, b = start("a"), start("b")
    owned = c.owners()
    generations = a.says().count("generation")
    for end in (WorkerProcess.kill, WorkerProcess.terminate):
        end(b)
        b = start("b")
    assert c.owners() == {a: owned[a], b: owned[c.workers[1]]}
    assert a.says().count("generation") == generations
    load.join()
    c.drain()
    ends_right(c, a, b)


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
    ends_right(c, a, b)


@pytest.mark.parametrize(
    ("tables", "encoding"),
    [(("windows", "profiles"), {}), (("windows",), {}), (("profiles",), {}), (("windows", "profiles"), QUOTAS)],
    ids=["windows+profiles", "windows", "profiles", "quotas"],
)
def test_zombie_rows(cluster: Callable[..., Cluster], tables: tuple[str, ...], encoding: dict[str, int]) -> None:
    """Old rows of a worker that stood still while it published land behind newer ones: no event is lost, and the changelogs are put right."""
    c, r = cluster(encoding=encoding), random.Random(5)
    c.items()
    begin = time.time_ns() // 1_000_000 - 10_000

    def events(first: int, n: int) -> list[bytes]:
        return [plain(r, f"e{k}", begin + k, 300) for k in range(first, first + n)]

    c.send(f"{c.prefix}.in.shop", events(0, 2000))
    a = c.worker("a").ready()
    c.drain()
    old = {name: verify.latest(c.log(name)) for name in ("windows", "profiles")}
    c.send(f"{c.prefix}.in.shop", events(2000, 2000))
    c.drain()
    zombie = KafkaProducer(bootstrap_servers=c.bootstrap, acks="all", enable_idempotence=False)
    for name in tables:
        for key, row in old[name].items():
            zombie.send(c.settings.topic(name), row, key)
    zombie.flush()
    zombie.close()
    last = verify.latest(c.log(tables[0]))
    assert all(last[key] == row for key, row in old[tables[0]].items())
    c.send(f"{c.prefix}.in.shop", events(4000, 40))  # of few users: what is put right is not their doing
    c.drain()
    b = c.worker("b").ready()
    c.owners()
    wait_for("the stale rows to be put right", lambda: a.metric("currents_repaired_total") + b.metric("currents_repaired_total") >= 200)
    c.drain()
    ends_right(c, a, b)


def ends_right(c: Cluster, a: WorkerProcess, b: WorkerProcess) -> None:
    """Both workers have tablets; one ends, the other takes them all and ends; then everything equals the offline fold."""
    owned = c.owners()
    assert owned[a]
    assert owned[b]
    assert a.terminate() == 0
    wait_for("the last worker to have every tablet", lambda: b.owned() == {0, 1, 2, 3})
    assert b.terminate() == 0
    assert c.check(b.data_dir, owned={a.data_dir: owned[a]}) == RIGHT
