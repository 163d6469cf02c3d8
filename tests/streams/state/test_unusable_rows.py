"""What each reader does with rows that cannot be used: left out, counted, and their users put right."""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiokafka import TopicPartition

from encoder.features import UNKNOWN, ItemTable
from schemas.deadletters import encode_dead_letter, letter_of
from schemas.events import Event, encode_event
from schemas.items import item_name
from schemas.rows import RowError, check_event, check_item
from schemas.windows import fold, row_of
from streams.commands import tail
from streams.core.settings import Kafka, Settings
from streams.ingest import dead_letter_log, redrive
from streams.monitoring.metrics import Metrics
from streams.monitoring.rejected import At, Rejected
from streams.offline.log_slices import _good
from streams.state.followers import Follower
from streams.state.item_store import ItemStore
from streams.state.rebuild import rebuild
from streams.state.restore import restore
from streams.state.tablet import LOST, UNPUBLISHED, Tablet
from streams.state.tablets import Tablets
from testkit import hostile
from tests.schemas.test_rows import item
from tests.schemas.test_rows import profile as packed
from tests.streams.state.test_restore import POLICY, Log, Record, profile, window

EVENTS = [Event(1, "u", t, t, 1, 1, "i", "u") for t in (3, 1, 2)]
FOLDED = fold(None, [row_of(e, item_name("shop", e.item_id)) for e in EVENTS], POLICY)
GOOD = {"w": window([1, 2]), "p": packed(last_event_at=2, events=2)}
SPOILT = [(topic, value) for topic, good in GOOD.items() for value in hostile.spoilt(good)]


@pytest.fixture
def tablet(tmp_path: Path) -> Iterator[Tablet]:
    one = Tablet(1, tmp_path / "t")
    yield one
    one.close()


def restored(tablet: Tablet, monkeypatch: pytest.MonkeyPatch, metrics: Metrics | None = None, **rows: list[Any]) -> list[bytes]:
    monkeypatch.setattr("streams.state.restore.reader", lambda *_, **__: Log({"w": [], "p": [], **rows}))
    rejected = (metrics or Metrics()).rejected
    return asyncio.run(restore(tablet, Kafka(bootstrap="-"), ("w", "p"), ItemTable(2), POLICY, lambda n: None, rejected=rejected))


@pytest.mark.parametrize(("topic", "value"), SPOILT)
def test_bad_row_of_a_user(tablet: Tablet, monkeypatch: pytest.MonkeyPatch, topic: str, value: bytes) -> None:
    """An unusable row behind a user's good one changes nothing in the tablet, is counted, and the user is to be published again."""
    metrics = Metrics()
    rows = {name: [Record(b"u", good), *([Record(b"u", value)] if name == topic else [])] for name, good in GOOD.items()}
    assert restored(tablet, monkeypatch, metrics, **rows) == [b"u"]
    assert (tablet.windows([b"u"]), tablet.profile(b"u")) == ([GOOD["w"]], GOOD["p"])
    assert (list(tablet.waiting(UNPUBLISHED)), list(tablet.waiting(LOST))) == ([b"u"], [])
    assert metrics.value("currents_rejected_rows_total", topic=topic) == 1


@pytest.mark.parametrize("key", [b"", b"\xff\xfe", b"x" * 5000, None])
@pytest.mark.parametrize("value", [b"", b"noise", None, GOOD["w"]])
def test_bad_key(tablet: Tablet, monkeypatch: pytest.MonkeyPatch, key: bytes, value: bytes | None) -> None:
    """A row under a key that is none is left out of both tables, and is nobody's."""
    assert restored(tablet, monkeypatch, w=[Record(key, value), Record(b"u", GOOD["w"])], p=[Record(key, value), Record(b"u", GOOD["p"])]) == []
    assert [user for user, _ in tablet.scan("windows")] == [user for user, _ in tablet.scan("profiles")] == [b"u"]


def test_put_right_by_a_later_row(tablet: Tablet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unusable row in front of a good one asks for nothing."""
    assert restored(tablet, monkeypatch, w=[Record(b"u", b"x"), Record(b"u", GOOD["w"])], p=[Record(b"u", b""), Record(b"u", GOOD["p"])]) == []
    assert list(tablet.waiting(LOST)) == []


def unified(*more: Any) -> list[Any]:
    return [Record(b"u", encode_event(e)) for e in EVENTS] + [Record(b"u", b"noise"), Record(None, b""), *more]  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [v for topic, v in SPOILT if topic == "w"])
def test_no_good_row_left(tablet: Tablet, monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    """Where compaction left only an unusable row the window is folded again from the unified topic, as often as it takes, once."""
    other = Record(b"v", encode_event(Event(1, "v", 1, 1, 1, 1, "i", "v")))
    monkeypatch.setattr("streams.state.rebuild.reader", lambda *_, **__: Log({"e": unified(other)}))
    assert restored(tablet, monkeypatch, w=[Record(b"u", value)], p=[Record(b"u", profile("u", [1, 2, 3]))]) == [b"u"]
    assert list(tablet.waiting(LOST)) == [b"u"]
    arguments = tablet, Kafka(bootstrap="-"), "e", {1: "shop"}, POLICY
    assert asyncio.run(rebuild(*arguments)) == 1
    assert (tablet.windows([b"u", b"v"]), list(tablet.waiting(UNPUBLISHED))) == ([FOLDED, None], [b"u"])
    assert asyncio.run(rebuild(*arguments)) == 0


def test_erased_is_not_rebuilt(tablet: Tablet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who was erased stays so: after an unusable row, by the profile alone, or in a later restore; one whose events went is nobody."""
    rows = {"w": [Record(b"a", b"x"), Record(b"a", None), Record(b"b", b"x"), Record(b"c", b"x")], "p": [Record(b"b", None)]}
    restored(tablet, monkeypatch, w=rows["w"], p=rows["p"])
    assert list(tablet.waiting(LOST)) == [b"c"]
    restored(tablet, monkeypatch, w=[*rows["w"], Record(b"c", None)], p=rows["p"])
    assert list(tablet.waiting(LOST)) == []
    tablet.write(waiting=[(LOST, b"d")])
    monkeypatch.setattr("streams.state.rebuild.reader", lambda *_, **__: Log({"e": unified()}))
    assert asyncio.run(rebuild(tablet, Kafka(bootstrap="-"), "e", {1: "shop"}, POLICY)) == 0
    assert (tablet.windows([b"d"]), list(tablet.waiting(LOST))) == ([None], [])


@pytest.mark.parametrize("value", [v for topic, v in SPOILT if topic == "p"])
def test_replica(tmp_path: Path, value: bytes) -> None:
    """A replica keeps what it has under an unusable row's key, and goes on behind it."""
    tablets, metrics, tp = Tablets(tmp_path, 8, 4), Metrics(), TopicPartition("p", 0)
    (tablet,) = tablets.assign({0}, 0)
    rows = [Record(b"u", GOOD["p"]), Record(b"u", value), Record(b"\xff", GOOD["p"]), Record(None, b"")]  # type: ignore[arg-type]
    records = [SimpleNamespace(topic="p", partition=0, offset=n, **r._asdict()) for n, r in enumerate(rows)]

    async def follow() -> None:
        with ThreadPoolExecutor(1) as pool:
            follower = Follower(Kafka(bootstrap="-"), "p", tablets, pool, lambda n: None, metrics.rejected)
            await follower._apply(tp, records, 1)

    asyncio.run(follow())
    assert [tablet.profile(b"u"), tablet.profile(b"\xff"), tablet.offset("p")[0]] == [GOOD["p"], None, 3]
    assert metrics.value("currents_rejected_rows_total", topic="p") == 3
    tablets.close()


def test_item_store(tmp_path: Path) -> None:
    """An item keeps its vector behind unusable rows, erasures under keys that are none too."""
    store, bad = ItemStore(tmp_path, "s", 4), list[tuple[int, str]]()
    rows = [(b"a:1", item()), *((b"a:1", v) for v in hostile.spoilt(item())), (b"\xff", None), (None, None), (b"a:2", item())]
    assert len(store.apply(rows, ("i", 0), 9, lambda n, error: bad.append((n, error.reason)))) == 1
    assert [n for n, _ in bad] == list(range(1, len(rows)))
    assert store.table.vectors[store.index(["a:1"])[0]].any()
    assert store.index(["a:2"])[0] == UNKNOWN
    store.close()


@pytest.mark.parametrize(("check", "key", "good"), [(check_event, b"u", encode_event(EVENTS[0])), (check_item, b"a:1", item())])
def test_retraining(check: Any, key: bytes, good: bytes) -> None:
    """A slice of a topic has its usable records alone: one other byte would spoil the whole file."""
    rows = [(key, good), (key, b"noise"), (None, good), (key, good[:-1]), (key, b""), (b"other", good), (key, good)]
    records = [SimpleNamespace(topic="t", partition=0, offset=n, key=k, value=v) for n, (k, v) in enumerate(rows)]
    assert list(_good(records, check)) == [
        rows[0],
        rows[6],
    ]


class Client:
    """A kafka-python consumer of one partition, which gives its records once."""

    def __init__(self, records: list[Any]) -> None:
        self._records = records

    def poll(self, ms: int) -> dict[str, list[Any]]:
        found, self._records = self._records, []
        if not found:
            raise EOFError
        return {"tp": found}

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: {0}


def clients(monkeypatch: pytest.MonkeyPatch, module: Any, rows: list[Any]) -> None:
    records = [SimpleNamespace(topic="t", partition=0, offset=n, timestamp=1, key=k, value=v) for n, (k, v) in enumerate(rows)]
    monkeypatch.setattr(module, "consumer", lambda _: Client(records))


def test_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tail` shows the rows around those that are none."""
    clients(monkeypatch, tail, [(None, GOOD["p"]), (b"\xff", None), *((b"u", v) for v in hostile.spoilt(GOOD["p"])), (b"u", GOOD["p"]), (b"u", None)])
    monkeypatch.setattr(tail, "extent", lambda *_: {TopicPartition("p", 0): (0, 99)})
    found = list[Any]()
    with contextlib.suppress(EOFError):
        for user, found_profile in tail.follow(Settings(), set(), True):
            found.append((user, found_profile is None))
    assert found == [("u", False), ("u", True)]


def test_dead_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dead-letters` lists the letters around what is none."""
    good = encode_dead_letter(letter_of(SimpleNamespace(topic="t", partition=0, offset=1, timestamp=1, key=None, value=b"x"), "r", "d", "p", 1))
    clients(monkeypatch, dead_letter_log, [(None, good), *((b"k", v) for v in hostile.spoilt(good)), (b"k", None), (None, good)])
    found = list[Any]()
    with contextlib.suppress(EOFError):
        for _, letter in dead_letter_log.dead_letters(Settings()):
            found.append(letter.reason)
    assert found == ["r", "r"]


def test_redriven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks are read around what is none; a run that says where it began in other words did not."""
    values = [*hostile.NOISE, None, b'{"from": "x"}', b'{"from": [1, -1]}', b'{"from": [1]}', b"5"]
    rows = [(b"run", orjson.dumps({"from": [1, 2]})), *((b"run", v) for v in values), (None, b""), (b"\xff", b""), (b"t/0@1@1", b"")]

    async def read(*_: Any) -> list[Any]:
        return [SimpleNamespace(topic="t", partition=0, offset=n, key=k, value=v) for n, (k, v) in enumerate(rows)]

    monkeypatch.setattr(redrive, "read_topic", read)
    assert asyncio.run(redrive.marks(Settings(worker={"partitions": 2}))) == ({b"t/0@1@1"}, [1, 2])


def test_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """A topic and reason are told with their place, then silent for a while, then with how many were held back."""
    clock = [0.0]
    rejected = Rejected(clock=lambda: clock[0])
    for at, offset in ((0.0, 1), (1.0, 2), (29.0, 3), (31.0, 4)):
        clock[0] = at
        rejected(At("w", 3, offset), RowError("value", "no\nwindow"))
    rejected(At("w", 3, 5), RowError("key", "no key"))
    told = [
        "w/3@1: left out: no window",
        "w/3@4: left out: no window (and 2 like it since)",
        "w/3@5: left out: no key",
    ]
    assert [r.getMessage() for r in caplog.records] == told
    assert rejected.total == 5
