"""Bad records become dead letters and the worker lives on."""

import time
from collections.abc import Callable

import orjson
import pytest

from schemas.events import encode_event
from schemas.mapping import Mapper
from testkit.cluster import RIGHT, Cluster, Load

pytestmark = pytest.mark.kafka
NOW = time.time_ns() // 1_000_000
DAY = 86_400_000
GOOD = {"account": "u1", "item": "i1", "behavior": "view", "time": NOW, "id": "x"}


def event(**other: object) -> bytes:
    """A good event but for some fields; None leaves a field out."""
    return orjson.dumps({k: v for k, v in {**GOOD, **other}.items() if v is not None})


BAD = [
    (b"not json", "not-json"),
    (b'{"account": "u1"', "not-json"),
    (b"\xff\xfe\x00", "not-json"),
    (b'{"account": "\xff"}', "not-json"),
    (b"[" * 50_000, "too-deep"),
    (b"[1, 2]", "wrong-shape"),
    (b'"text"', "wrong-shape"),
    (b"null", "wrong-shape"),
    (None, "empty-value"),
    (b"", "empty-value"),
    (event(account=None), "no-account"),
    (event(account={"id": 1}), "no-account"),
    (event(account="x" * 5000), "no-account"),
    (event(item=None), "no-item"),
    (event(item=["i1"]), "no-item"),
    (event(item=""), "no-item"),
    (event(time=None), "no-time"),
    (event(time="yesterday"), "bad-time"),
    (event(time=NOW + DAY), "time-in-future"),
    (event(time=2**62), "time-in-future"),
    (event(time=1000), "time-too-old"),
    (event(time=-NOW), "time-too-old"),
    (event(behavior="teleport"), "unknown-behavior"),
    (event(behavior=["teleport"]), "unknown-behavior"),
    (event(id={"a": 1}), "bad-id"),
    (b"x" * 1_000_000, "not-json"),
    (event(behavior="teleport", text="x" * 1_000_000), "unknown-behavior"),
]
ODD_BUT_GOOD = [
    (None, event(id="large", text="x" * 1_000_000)),
    (b"\xff\xfe", event(id="key")),
    (b"", event(id="empty key")),
    (None, event(id="twice")),
    (None, event(id="twice")),
    (None, event(id="skew", time=NOW + 200_000)),
    (None, event(id="old", time=NOW - 3000 * DAY)),
    (None, event(id="numbers", account=17, item=4, value="1.5", time=str(NOW))),
    (None, event(id="text", account="Ünï😀\0", item="a/b\n")),
    (None, event(id=None)),
    (None, event(id=None)),
]
BAD_ITEMS = [(b"{}", "no-item"), (b'{"id": "i"}', "no-title"), (b"[1]", "wrong-shape"), (b"\x00", "not-json"), (b"", "empty-value")]


def test_bad_records(cluster: Callable[..., Cluster]) -> None:
    """Each bad record is one dead letter, whole, with its reason and where it came from; every other one is folded."""
    c = cluster()
    c.items()
    good = c.send(f"{c.prefix}.in.shop", ODD_BUT_GOOD)
    c.send(f"{c.prefix}.in.shop", [(b"\xffkey", value) for value, _ in BAD])
    c.send(f"{c.prefix}.in.items", [value for value, _ in BAD_ITEMS])
    good += c.send(f"{c.prefix}.in.shop", [event(id=f"after {n}", account=f"u{n}") for n in range(100)])
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    letters = c.dead()
    assert sorted((d.value or b"", d.reason) for d in letters) == sorted((value or b"", reason) for value, reason in BAD + BAD_ITEMS)
    assert {d.key for d in letters} == {b"\xffkey", None}
    assert {d.platform for d in letters} == {"shop"}
    assert len({(d.topic, d.partition, d.offset) for d in letters}) == len(BAD) + len(BAD_ITEMS)
    assert len(c.log("events")) == good
    assert c.check(worker.data_dir) == RIGHT


def test_poison_on_the_unified_topic(cluster: Callable[..., Cluster]) -> None:
    """Foreign bytes on the unified topic become dead letters, and the worker goes on with the rest."""
    c = cluster()
    worker = c.worker("a").ready()
    found = Mapper(c.settings.platforms[0], 300_000, 0).events(event(), "t", 0, 0, NOW)
    assert isinstance(found, list)
    good = encode_event(found[0])
    alien = good.replace(b"\x01\x01\xa2i1", b"\x3f\x01\xa2i1")
    assert alien != good
    poison = [(b"u1", b"\xc1 garbage"), (b"u2", good), (None, good), (b"u1", None), (b"u1", b""), (b"u1", alien), (b"u1", good[:-4])]
    c.send(c.settings.topic("events"), poison)
    c.send(f"{c.prefix}.in.shop", [event(id=f"e{n}", account=f"u{n}") for n in range(50)])
    c.drain()
    assert worker.metric('currents_dead_letters_total{platform="",reason="not-unified"}') == len(poison)
    assert worker.get("/v1/profiles/u2").status_code == 200
    assert worker.terminate() == 0
    assert sorted(d.value or b"" for d in c.dead()) == sorted(value or b"" for _, value in poison)


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


def test_disk_is_full(cluster: Callable[..., Cluster]) -> None:
    """A worker that can write no further stops with a clear line; once there is room again the next one goes on and ends right."""
    c = cluster(worker={"write_buffer_mb": 1})  # without a log of its own RocksDB writes when a memtable is full
    c.items()
    worker = c.worker("a").ready()
    worker.limit_files(64 << 10)
    load = Load(c, events=30_000, rate=10_000)
    assert worker.exit() == 1
    assert "Traceback" not in worker.says()
    (line,) = (line for line in worker.says().splitlines() if line.startswith("currents:"))
    assert str(worker.data_dir) in line
    assert "is the disk full?" in line
    worker = c.worker("a").ready()
    load.join()
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT
