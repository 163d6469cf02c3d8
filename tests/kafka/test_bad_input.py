"""Bad records become dead letters and the worker lives on; what it cannot run with is one clear line and exit status 1."""

import time
from collections.abc import Callable

import orjson
import pytest

from schemas.events import encode_event
from schemas.mapping import Mapper
from streams.topics import admin
from tests.kafka.cluster import RIGHT, Cluster, Load, WorkerProcess

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
    (b"[" * 50_000, "not-json"),
    (b"[1, 2]", "wrong-shape"),
    (b'"text"', "wrong-shape"),
    (b"null", "wrong-shape"),
    (None, "empty-value"),
    (b"", "empty-value"),
    (event(account=None), "no-account"),
    (event(account={"id": 1}), "no-account"),
    (event(account="x" * 5000), "no-account"),
    (event(item=None), "no-item"),
    (event(item=""), "no-item"),
    (event(time=None), "no-time"),
    (event(time="yesterday"), "bad-time"),
    (event(time=NOW + DAY), "time-in-future"),
    (event(time=2**62), "time-in-future"),
    (event(time=1000), "time-too-old"),
    (event(time=-NOW), "time-too-old"),
    (event(behavior="teleport"), "unknown-behavior"),
    (event(behavior=["view"]), "unknown-behavior"),
    (event(value="dear"), "bad-value"),
    (event(dwell=-1), "bad-dwell"),
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
    (None, event(id="text", account="Ünï😀", item="a/b\n")),
]
BAD_ITEMS = [(b"{}", "no-item"), (b'{"id": "i"}', "no-title"), (b"[]", "wrong-shape"), (b"\x00", "not-json"), (b"", "empty-value")]


def test_bad_records(cluster: Callable[..., Cluster]) -> None:
    """Each bad record is one dead letter, whole, with its reason and where it came from; every other one is folded."""
    c = cluster()
    c.items()
    good = c.send(f"{c.prefix}.in.shop", ODD_BUT_GOOD)
    c.send(f"{c.prefix}.in.shop", [(b"key", value) for value, _ in BAD])
    c.send(f"{c.prefix}.in.items", [value for value, _ in BAD_ITEMS])
    good += c.send(f"{c.prefix}.in.shop", [event(id=f"after {n}", account=f"u{n}") for n in range(100)])
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    letters = c.dead()
    assert sorted((d.value or b"", d.reason) for d in letters) == sorted((value or b"", reason) for value, reason in BAD + BAD_ITEMS)
    assert {d.key for d in letters} == {b"key", None}
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
    """Records that say they were written long ago or ahead of the clock are taken like others, and their events are not expired early."""
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
    """The last word on an item counts, also when it is taken away and comes in one batch."""
    c = cluster()
    topic, gone, there = f"{c.prefix}.in.items", (b"i1", None), (b"i2", orjson.dumps({"id": "i2", "title": "Second"}))
    for row in ((b"i1", orjson.dumps({"id": "i1", "title": "First"})), gone, (b"i2", None), there):
        c.send(topic, [row])
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    last = {r.key: r.value for r in c.log("item-vectors")}
    assert last[b"shop:i1"] is None
    assert last[b"shop:i2"] is not None


# What a worker does not start with


def refused(worker: WorkerProcess, *words: str) -> None:
    """It ended by itself with status 1, one line and no traceback; the line has these words."""
    assert worker.exit() == 1
    lines = [line for line in worker.says().splitlines() if line.startswith("currents:")]
    assert len(lines) == 1, worker.says()
    assert "Traceback" not in worker.says()
    for word in words:
        assert word in lines[0]


def test_missing_platform_topic(cluster: Callable[..., Cluster]) -> None:
    """A platform's topic that does not exist is named, and how to make it."""
    c = cluster()
    client = admin(c.settings.kafka)
    client.delete_topics([f"{c.prefix}.in.shop"])
    client.close()
    refused(c.worker("a"), f"{c.prefix}.in.shop", "is missing", "currents topics --create")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:9092", "127.0.0.1", "127.0.0.1:http", "", "http://127.0.0.1:9092"])
def test_no_broker(cluster: Callable[..., Cluster], address: str) -> None:
    """An address where no broker answers, or that is none, is shown as it stands in the settings."""
    c = cluster()
    refused(c.worker("a", CURRENTS_KAFKA__BOOTSTRAP=address or " "), "kafka.bootstrap", address)


def test_partitions_differ(cluster: Callable[..., Cluster]) -> None:
    """Settings that want other partitions than the topics have are refused."""
    c = cluster()
    refused(c.worker("a", CURRENTS_WORKER__PARTITIONS="8"), "has 4 partitions, want 8", "worker.partitions")


def test_bundle_that_does_not_fit(cluster: Callable[..., Cluster]) -> None:
    """A bundle made for other item vectors, or none at all, is refused with what was wanted."""
    from encoder.bundle import ONNX, Manifest, publish

    c = cluster()
    folder = c.folder / "bundle"
    publish(folder, Manifest("v1", "space", "other-tower", 8, 16, 32), {ONNX: b"graph"})
    refused(c.worker("a", CURRENTS_ENCODING__ENCODER=str(folder)), "item_dims", "16", "encoding.tower")
    refused(c.worker("b", CURRENTS_ENCODING__ENCODER=str(c.folder / "none")), "none", "no such folder")


def test_two_workers_in_one_folder(cluster: Callable[..., Cluster]) -> None:
    """The second worker in a data folder is refused, the first is not disturbed."""
    c = cluster()
    first = c.worker("a").ready()
    refused(c.worker("b", data_dir=first.data_dir), "worker.data_dir", "another worker")
    assert first.is_ready()


def test_port_is_taken(cluster: Callable[..., Cluster]) -> None:
    """A query port that is taken is named."""
    c = cluster()
    first = c.worker("a").ready()
    refused(c.worker("b", CURRENTS_QUERY__PORT=str(first.port)), "query.port", str(first.port))


def test_disk_is_full(cluster: Callable[..., Cluster]) -> None:
    """A worker that can write no further stops with a clear line; once there is room again the next one goes on and ends right."""
    c = cluster()
    c.items()
    worker = c.worker("a").ready()
    worker.limit_files(1 << 20)
    load = Load(c, events=30_000, rate=10_000)
    refused(worker, str(worker.data_dir), "is the disk full?")
    worker = c.worker("a").ready()
    load.join()
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT
