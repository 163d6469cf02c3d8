"""Records that are odd but not broken, and ones that are broken in rarer ways."""

import time
from collections.abc import Callable

import orjson
import pytest

from tests.kafka.cluster import RIGHT, Cluster

pytestmark = pytest.mark.kafka
NOW = time.time_ns() // 1_000_000
DAY = 86_400_000
GOOD = {"account": "u1", "item": "i1", "behavior": "view", "time": NOW}


def event(**other: object) -> bytes:
    return orjson.dumps(GOOD | other)


BROKEN = [
    (b"\xff\xfe\x00", "not-json"),
    (b'{"account": "\xff"}', "not-json"),
    (b"[" * 50_000, "not-json"),
    (b'"text"', "wrong-shape"),
    (b"null", "wrong-shape"),
    (event(account={"id": 1}), "no-account"),
    (event(account="x" * 5000), "no-account"),
    (event(item=["i1"]), "no-item"),
    (event(time="yesterday"), "bad-time"),
    (event(time=2**62), "time-in-future"),
    (event(time=-NOW), "time-too-old"),
    (event(behavior=["view"]), "unknown-behavior"),
    (event(dwell=-1), "bad-dwell"),
    (event(id={"a": 1}), "bad-id"),
    (event(behavior="teleport", text="x" * 1_000_000), "unknown-behavior"),
]
ODD = [
    (b"", event(id="empty key")),
    (b"\xff\xfe", event(id="key in no encoding")),
    (None, event(id="ahead within the skew", time=NOW + 200_000)),
    (None, event(id="old", time=NOW - 3000 * DAY)),
    (None, event(id="numbers", account=17, item=4, value="1.5", time=str(NOW))),
    (None, event(id="text", account="Ünï😀\0", item="a/b\n")),
    (None, event()),
    (None, event()),
]


def test_odd_and_broken(cluster: Callable[..., Cluster]) -> None:
    """Each broken record is one dead letter, whole and with the place it came from; every odd one is folded."""
    c = cluster()
    topic = f"{c.prefix}.in.shop"
    c.send(topic, ODD)
    c.send(topic, [(b"\xffkey", value) for value, _ in BROKEN])
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    letters = c.dead()
    assert sorted((d.value, d.reason) for d in letters) == sorted(BROKEN)
    assert {(d.key, d.platform, d.topic) for d in letters} == {(b"\xffkey", "shop", topic)}
    assert len({(d.partition, d.offset) for d in letters}) == len(BROKEN)
    assert len(c.log("events")) == len(ODD)
    assert c.check(worker.data_dir) == RIGHT


def test_record_times(cluster: Callable[..., Cluster]) -> None:
    """Records that were written long ago, or by a clock that is ahead, are taken like others, and their rows do not expire before they are read."""
    c = cluster()
    topic = f"{c.prefix}.in.shop"
    c.configure(topic, {"message.timestamp.after.max.ms": str(2**62)})
    c.send(topic, [event(id="ahead")], at_ms=NOW + 30 * DAY)
    c.send(topic, [event(id="old")], at_ms=NOW - 3000 * DAY)
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT
    times = [r.timestamp for r in c.log("events")]
    assert len(times) == 2
    assert all(NOW - DAY < t <= time.time_ns() // 1_000_000 for t in times)


def test_items_in_order(cluster: Callable[..., Cluster]) -> None:
    """The last word on an item counts, also when both come in one batch."""
    c = cluster()
    topic, title = f"{c.prefix}.in.items", {"title": "Thing"}
    taken, given = (b"i1", None), (b"i2", orjson.dumps(title | {"id": "i2"}))
    rest = [(None, orjson.dumps(title | {"id": f"x{n}"})) for n in range(3)]  # round robin: both words on an item lie in one partition
    for word in ((b"i1", orjson.dumps(title | {"id": "i1"})), (b"i2", None), taken, given):
        c.send(topic, [word, *rest])
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    last = {r.key: r.value for r in c.log("item-vectors")}
    assert last[b"shop:i1"] is None
    assert last[b"shop:i2"] is not None
