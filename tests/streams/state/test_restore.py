"""Merging a changelog into a tablet."""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from encoder.features import ItemTable
from schemas.events import BEHAVIOR_CODE, Event, encode_event
from schemas.profiles import VECTOR_TYPE, Profile, encode_profile
from schemas.windows import DTYPE, NO_DWELL, ROW_BYTES, VERSION, Policy, fold, row_of
from streams.audit.windows import offline_windows
from streams.core.clock import now_ms
from streams.core.errors import StorageError
from streams.core.settings import Kafka
from streams.state.restore import Seen, merge, put_profiles, put_windows, restore
from streams.state.tablet import FALLBACK, UNPUBLISHED, Tablet, key_bytes
from streams.state.tablets import STALE_MS, Tablets

POLICY = Policy(6)
EVENTS = 40


class Record(NamedTuple):
    key: bytes
    value: bytes | None


def rows(times: list[int]) -> list[bytes]:
    out = np.zeros(len(times), DTYPE)
    out["ts_ms"], out["event_id"], out["dwell_ds"] = times, times, NO_DWELL
    return [r.tobytes() for r in out]


def window(times: list[int]) -> bytes:
    return fold(None, rows(times), POLICY)


def test_continued() -> None:
    """A window that continues another, grown or slid on, is taken as it is."""
    assert merge(window([1, 2]), window([1, 2, 3]), POLICY) == window([1, 2, 3])
    slid = window([3, 4, 5, 6, 7, 8])
    assert merge(window([1, 2, 3, 4, 5, 6]), slid, POLICY) is slid


@given(st.lists(st.integers(0, EVENTS)), st.lists(st.integers(0, EVENTS)))
def test_merge_is_the_fold(a: list[int], b: list[int]) -> None:
    """Whatever two workers folded of one user's events, merging gives the fold of all of them."""
    assert merge(window(a), window(b), POLICY) == window([*a, *b])


CODES = [BEHAVIOR_CODE[b] for b in ("view", "view", "view", "buy", "hide")]
NAMES = {1: "shop", 2: "video", 3: "news"}
policies = st.builds(Policy, st.integers(1, 6), st.integers(0, 3), st.integers(0, 3))
events = st.builds(  # few times and ids: one key comes with other items, platforms and behaviors
    Event, st.just(1), st.just("u"), st.integers(0, 12), st.integers(0, 1), st.sampled_from(sorted(NAMES)), st.sampled_from(CODES),
    st.sampled_from(["a", "b"]), st.just("u"),
)  # fmt: skip
histories = st.lists(events, min_size=1, max_size=40)


def folded(some: list[Event], policy: Policy, window: bytes | None = None) -> bytes:
    return fold(window, [row_of(e, f"{NAMES[e.platform]}:{e.item_id}") for e in some], policy)


@given(histories, policies)
def test_offline_windows(some: list[Event], policy: Policy) -> None:
    """The check of the whole log, which sorts, and the fold, which does not, come to the same bytes."""
    found, _ = offline_windows([Record(b"u", encode_event(e)) for e in some], NAMES, policy)
    assert found == {b"u": folded(some, policy)}


@given(histories, histories, policies)
def test_merge_under_quotas(a: list[Event], b: list[Event], policy: Policy) -> None:
    """Whatever two workers folded of one user's events, merging gives the fold of all of them, also where a quota holds old events."""
    assert merge(folded(a, policy), folded(b, policy), policy) == folded([*a, *b], policy)


@given(histories, histories, policies)
def test_merge_of_what_continues(a: list[Event], b: list[Event], policy: Policy) -> None:
    """A window that continues another is what merging gives, and an old row behind it loses nothing."""
    old = folded(a, policy)
    new = folded(b, policy, old)
    assert merge(old, new, policy) == merge(new, old, policy) == new


def test_held_by_a_quota() -> None:
    """A full window that slid on without an event that a quota holds is not taken as it is: the event was lost, not evicted."""
    policy = Policy(3, 1)
    shop, video = (Event(1, "u", 1, 0, 1, 1, "a", "u"), [Event(1, "u", t, 0, 2, 1, "a", "u") for t in range(2, 9)])
    old, new = folded([shop, *video[:3]], policy), folded(video[1:5], policy)
    assert merge(old, new, policy) == folded([shop, *video[:5]], policy) != new


@pytest.fixture
def tablet(tmp_path: Path) -> Tablet:
    return Tablet(0, tmp_path / "t")


def test_stale_window(tablet: Tablet) -> None:
    """An old row behind a newer one loses no event, and its user is named; who is put right by a later row is not. Until then no offset is noted."""
    short = set[bytes]()
    old, new = window([1, 5]), window([1, 2, 3, 4])
    put_windows(tablet, [Record(b"u", new), Record(b"u", old), Record(b"v", old), Record(b"v", window([1, 2, 5]))], short, POLICY, {"t": 3})
    assert tablet.windows([b"u", b"v"]) == [window([1, 2, 3, 4, 5]), window([1, 2, 5])]
    assert (short, tablet.offset("t")[0]) == ({b"u"}, -1)
    put_windows(tablet, [Record(b"u", window([1, 2, 3, 4, 5]))], short, POLICY, {"t": 4})
    assert (short, tablet.offset("t")[0]) == (set(), 4)
    put_windows(tablet, [Record(b"u", None), Record(b"u", old)], short, POLICY, {"t": 6})
    assert (tablet.windows([b"u"]), short) == ([old], set())
    tablet.close()


def profile(user: str, times: list[int], unknown: int = 0) -> bytes:
    head = Profile(user, 9, max(times), 9, len(times), unknown, "e", "s", 0, VECTOR_TYPE, b"")
    return encode_profile(head)


def test_stale_profile(tablet: Tablet) -> None:
    """A profile of another window than the user's is named, until the right one follows; until then no offset is noted."""
    stale, long = set[bytes](), "😀" * 1024
    tablet.write(windows=[(b"u", window([1, 2, 3])), (long.encode(), window([1, 300]))])
    found = [Record(b"u", profile("u", [1, 3])), Record(long.encode(), profile(long, [1, 300])), Record(b"w", None)]
    put_profiles(tablet, found, stale, ItemTable(8), {"t": 2})
    assert (stale, tablet.offset("t")[0]) == ({b"u"}, -1)
    put_profiles(tablet, [Record(b"u", profile("u", [1, 2, 3]))], stale, ItemTable(8), {"t": 3})
    assert (stale, tablet.offset("t")[0]) == (set(), 3)
    assert tablet.profile(b"u") == profile("u", [1, 2, 3])
    tablet.close()


@pytest.mark.parametrize("most", [0, 2, 100])
def test_remembered_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What is remembered of windows while an empty tablet is restored changes nothing of the outcome, also where it is forgotten on the way."""
    monkeypatch.setattr("streams.state.restore.MOST_SEEN", most)
    parts: list[list[tuple[str, list[int] | None]]] = [[("a", [1]), ("b", [1, 2]), ("a", [1, 3])], [("b", None), ("c", [5]), ("d", [6])]]
    parts.append([("a", [1, 2]), ("b", [7])])
    made: list[tuple[str, list[int], int]] = [("a", [1, 2, 3], 0), ("b", [7], 1), ("c", [4], 0), ("d", [6], 0), ("e", [1], 1)]
    found = []
    for n, seen in enumerate((None, Seen(), Seen(empty=True))):
        tablet, short, stale = Tablet(0, tmp_path / str(n)), set[bytes](), set[bytes]()
        for part in parts:
            put_windows(tablet, [Record(u.encode(), window(times) if times else None) for u, times in part], short, POLICY, {"w": 1}, seen)
        put_profiles(tablet, [Record(u.encode(), profile(u, times, unknown)) for u, times, unknown in made], stale, ItemTable(2), {"p": 1}, seen=seen)
        found.append((dict(tablet.scan("windows")), dict(tablet.scan("profiles")), dict(tablet.scan("waiting")), short, stale))
        tablet.close()
    assert found[0] == found[1] == found[2]
    assert (found[0][0][b"a"], found[0][3:]) == (window([1, 2, 3]), ({b"a"}, {b"c"}))


def test_profiles_of_the_fallback(tablet: Tablet) -> None:
    """Users whose last row is the fallback encoder's wait for the right one; without a fallback nobody does."""
    rows = [Record(u.encode(), profile(u, [1, 2])) for u in ("u", "😀" * 1024, "encoder_version")] + [Record(b"gone", None)]
    put_profiles(tablet, rows, set(), ItemTable(8), {"t": 3})
    put_profiles(tablet, rows, set(), ItemTable(8), {"t": 3}, "baseline-3")
    assert list(tablet.awaited()) == []
    put_profiles(tablet, rows, set(), ItemTable(8), {"t": 3}, "e")
    assert set(tablet.waiting(FALLBACK)) == {row.key for row in rows[:3]}
    tablet.close()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("unknown", [1, 130, 300])
def test_late_item_of_another_worker(tablet: Tablet, unknown: int, known: bool) -> None:
    """A user whose last profile is from before an item came is noted as one who waits for it, also where it is known by now; others are not."""
    table, stale, late = ItemTable(2), set[bytes](), ("late", "unknown_items", "x\u00adunknown_items\x07", "😀" * 40, "😀" * 1024)
    out = np.zeros(unknown, DTYPE)
    out["ts_ms"], out["event_id"], out["item_key"] = 5, np.arange(unknown), 7
    several = VERSION + out.tobytes()
    tablet.write(windows=[(user, several) for user in (*map(str.encode, late), b"encoded")])
    found = [Record(u.encode(), profile(u, [5] * unknown, unknown if u in late else 0)) for u in (*late, "encoded")]
    if known:
        table.put(7, np.ones(2, np.float32))
    put_profiles(tablet, found, stale, table, {"t": 2})
    assert (list(tablet.awaited()), list(tablet.waiting(key_bytes(7))), stale) == ([key_bytes(7)], sorted(map(str.encode, late)), set())
    tablet.close()


def test_later_row_takes_it_back(tablet: Tablet) -> None:
    """Who was noted by an earlier row waits no longer once a later one, read in another part, is as it should be; others still do."""
    table, noted = ItemTable(2), dict[bytes, list[bytes]]()
    table.put(7, np.ones(2, np.float32))
    out = np.zeros(2, DTYPE)
    out["ts_ms"], out["event_id"], out["item_key"] = 5, [1, 2], 7
    users = [b"u", b"v"]
    tablet.write(windows=[(user, VERSION + out.tobytes()) for user in users])
    before = [Record(u, profile(u.decode(), [5, 5], 2)) for u in users]
    put_profiles(tablet, before, set(), table, {"t": 1}, "e", noted)
    assert sorted(tablet.waiting(key_bytes(7))) == sorted(tablet.waiting(FALLBACK)) == users
    put_profiles(tablet, [Record(b"u", profile("u", [5, 5], 0))], set(), table, {"t": 2}, "other", noted)
    assert list(tablet.waiting(key_bytes(7))) == list(tablet.waiting(FALLBACK)) == [b"v"]
    tablet.close()


class Log:
    """An aiokafka consumer of changelogs that lie in lists."""

    def __init__(self, rows: dict[str, list[Record]]) -> None:
        self._rows, self._at = rows, dict[TopicPartition, int]()

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def beginning_offsets(self, parts: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(parts, 0)

    async def end_offsets(self, parts: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: len(self._rows[tp.topic]) for tp in parts}

    def assign(self, parts: list[TopicPartition]) -> None:
        self._at = dict.fromkeys(parts, 0)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._at[tp] = offset

    async def getmany(self, tp: TopicPartition, **_: Any) -> dict[TopicPartition, list[Any]]:
        found = [SimpleNamespace(topic=tp.topic, partition=tp.partition, offset=n, **r._asdict()) for n, r in enumerate(self._rows[tp.topic])]
        found = found[self._at[tp] :]
        self._at[tp] += len(found)
        return {tp: found} if found else {}

    def highwater(self, tp: TopicPartition) -> int:
        return len(self._rows[tp.topic])

    async def position(self, tp: TopicPartition) -> int:
        return self._at[tp]


STALE = {
    "w": [Record(b"u", window([1, 2, 3, 4])), Record(b"u", window([1, 2])), Record(b"v", window([1, 2]))],
    "p": [Record(b"u", profile("u", [1, 2, 3, 4])), Record(b"v", profile("v", [1]))],
}


def restored(tablet: Tablet) -> Coroutine[Any, Any, list[bytes]]:
    return restore(tablet, Kafka(bootstrap="-"), ("w", "p"), ItemTable(2), POLICY, lambda n: None)


def test_owed_until_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users whose last rows are not right are named by every restore until they are published, also by one after a restart that reads no row."""
    monkeypatch.setattr("streams.state.restore.reader", lambda *_, **__: Log(STALE))
    tablets = Tablets(tmp_path, 8, 4)
    (tablet,) = tablets.assign({1}, 1)
    assert asyncio.run(restored(tablet)) == [b"u", b"v"]
    assert (tablet.offset("w")[0], tablet.offset("p")[0], list(tablet.waiting(UNPUBLISHED))) == (2, 1, [b"u", b"v"])
    assert asyncio.run(restored(tablet)) == [b"u", b"v"]
    tablets.assign(set(), 2)
    (tablet,) = tablets.assign({1}, 3)
    tablet.write(resolved=[(UNPUBLISHED, b"u")])
    assert asyncio.run(restored(tablet)) == [b"v"]
    tablets.close()


def test_cancelled_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore that is given up ends only when its thread has: rows that it still wrote would be put behind newer ones."""
    monkeypatch.setattr("streams.state.restore.reader", lambda *_, **__: Log(STALE))
    tablets, writes, may = Tablets(tmp_path, 8, 4), threading.Event(), threading.Event()
    (tablet,) = tablets.assign({1}, 1)
    write = tablet.write

    def slowly(*arguments: Any, **named: Any) -> None:
        writes.set()
        assert may.wait(20)
        write(*arguments, **named)

    monkeypatch.setattr(tablet, "write", slowly)

    async def work() -> None:
        await restored(tablet)

    async def scenario() -> None:
        tablet.restore_by(work, asyncio.ensure_future)
        await asyncio.to_thread(writes.wait, 20)
        frozen = asyncio.ensure_future(tablets.freeze())
        await asyncio.sleep(0.05)
        assert not frozen.done()
        may.set()
        await frozen
        assert tablet.restores[0].cancelled()
        assert tablet.windows([b"u"]) == [window([1, 2, 3, 4])]

    asyncio.run(scenario())
    tablets.close()


def test_other_bytes() -> None:
    """A window that is none is an error, not lost events."""
    with pytest.raises(ValueError, match="version"):
        merge(VERSION + bytes(ROW_BYTES), b"\x07" + bytes(ROW_BYTES), POLICY)


class Pieces(Log):
    """The same, that begins at some offset, gives two records at once, knows its end only later, and notes what it was asked for."""

    def __init__(self, rows: dict[str, list[Record]], first: int = 0) -> None:
        super().__init__(rows)
        self.first, self.begun, self.stopped, self._waits = first, dict[str, int](), False, 2

    async def stop(self) -> None:
        self.stopped = True

    async def beginning_offsets(self, parts: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(parts, self.first)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        super().seek(tp, offset)
        self.begun[tp.topic] = offset

    async def getmany(self, tp: TopicPartition, **_: Any) -> dict[TopicPartition, list[Any]]:
        self._waits -= 1
        if self._waits >= 0:
            return {}
        found = [SimpleNamespace(topic=tp.topic, partition=tp.partition, offset=n, **r._asdict()) for n, r in enumerate(self._rows[tp.topic])]
        part = found[self._at[tp] : self._at[tp] + 2]
        self._at[tp] += len(part)
        return {tp: part} if part else {}

    def highwater(self, tp: TopicPartition) -> int:
        return None if self._waits > 0 else super().highwater(tp)  # type: ignore[return-value]


RIGHT = {
    "w": [Record(u.encode(), window([1, 2])) for u in "abcde"],
    "p": [Record(u.encode(), profile(u, [1, 2], unknown=2)) for u in "abcd"],
}


def test_restored_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tablet is brought up to the end of both logs, in however many pieces they come; whoever restores it again reads what is new alone."""
    log, counts = Pieces(RIGHT), list[int]()
    monkeypatch.setattr("streams.state.restore.reader", lambda *_, **__: log)
    tablets = Tablets(tmp_path, 8, 4)
    (tablet,) = tablets.assign({1}, 1)
    arguments = (tablet, Kafka(bootstrap="-"), ("w", "p"), ItemTable(2), POLICY, counts.append, "e")
    before = now_ms()
    assert asyncio.run(restore(*arguments)) == []
    assert (counts, log.begun, log.stopped) == ([2, 2, 1, 2, 2], {"w": 0, "p": 0}, True)
    assert dict(tablet.scan("windows")) == {r.key: r.value for r in RIGHT["w"]}
    assert dict(tablet.scan("profiles")) == {r.key: r.value for r in RIGHT["p"]}
    assert list(tablet.waiting(FALLBACK)) == [b"a", b"b", b"c", b"d"]
    assert (tablet.offset("w")[0], tablet.offset("p")[0]) == (4, 3)
    assert all(before <= tablet.offset(topic)[1] <= now_ms() for topic in ("w", "p"))
    log = Pieces({"w": [*RIGHT["w"], Record(b"f", window([3]))], "p": RIGHT["p"]})
    assert asyncio.run(restore(*arguments)) == []
    assert (counts[5:], log.begun, tablet.windows([b"f"])) == ([1], {"w": 5, "p": 4}, [window([3])])
    tablets.close()


def test_restore_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer is stopped also where a restore fails."""
    log = Pieces({"w": [Record(b"u", window([1]))], "p": []})

    def fails(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("streams.state.restore.reader", lambda *_, **__: log)
    tablets = Tablets(tmp_path, 8, 4)
    (tablet,) = tablets.assign({1}, 1)
    monkeypatch.setattr(tablet, "write", fails)
    with pytest.raises(StorageError):
        asyncio.run(restored(tablet))
    assert (log.stopped, tablet.offset("w")[0]) == (True, -1)
    tablets.close()


@pytest.mark.parametrize(
    ("topic", "offset", "ago_ms", "first", "kept"),
    [
        ("w", 1, 0, 0, True),
        ("w", 1, STALE_MS - 60_000, 0, True),
        ("w", 1, STALE_MS + 1, 0, False),
        ("w", 4, 0, 0, True),  # the end of the log
        ("w", 5, 0, 0, False),
        ("p", 3, 0, 0, True),
        ("p", 4, 0, 0, False),
        ("w", 1, 0, 2, True),  # the first row that the log still has follows
        ("w", 1, 0, 3, False),
    ],
)
def test_continues_its_changelog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topic: str, offset: int, ago_ms: int, first: int, kept: bool
) -> None:
    """A tablet that is too old, or ahead of the log or of its start, is emptied and restored from the log alone; any other keeps what it has."""
    log = Pieces(RIGHT, first)
    monkeypatch.setattr("streams.state.restore.reader", lambda *_, **__: log)
    tablets = Tablets(tmp_path, 8, 4)
    (tablet,) = tablets.assign({1}, 1)
    tablet.write(windows=[(b"z", window([9]))], offsets={topic: offset}, now_ms=now_ms() - ago_ms)
    asyncio.run(restored(tablet))
    assert (tablet.windows([b"z"]) == [window([9])]) is kept
    assert log.begun[topic] == (offset + 1 if kept else first)
    tablets.close()


def test_erased_user(tablet: Tablet) -> None:
    """Who was erased has neither window nor profile, is named nowhere, and begins anew with the next row."""
    short, stale = set[bytes](), set[bytes]()
    put_windows(tablet, [Record(b"u", window([1, 2])), Record(b"v", window([1]))], short, POLICY, {"w": 1})
    put_profiles(tablet, [Record(b"u", profile("u", [1, 2])), Record(b"v", profile("v", [1]))], stale, ItemTable(2), {"p": 1}, "e")
    put_windows(tablet, [Record(b"u", None)], short, POLICY, {"w": 2})
    put_profiles(tablet, [Record(b"u", None)], stale, ItemTable(2), {"p": 2}, "e", {b"u": [FALLBACK]})
    assert (tablet.windows([b"u", b"v"]), tablet.profile(b"u"), short, stale) == ([None, window([1])], None, set(), set())
    assert list(tablet.waiting(FALLBACK)) == [b"v"]
    put_windows(tablet, [Record(b"u", window([3]))], short, POLICY, {"w": 3})
    assert (tablet.windows([b"u"]), short, tablet.offset("w")[0]) == ([window([3])], set(), 3)
    tablet.close()


def test_profile_without_a_window(tablet: Tablet) -> None:
    """A profile of a user without a window is put as it is, and nobody waits for its items."""
    stale = set[bytes]()
    put_profiles(tablet, [Record(b"u", profile("u", [1], unknown=1))], stale, ItemTable(2), {"p": 0})
    assert (tablet.profile(b"u"), stale, list(tablet.awaited()), tablet.offset("p")[0]) == (profile("u", [1], unknown=1), set(), [], 0)
    tablet.close()


def test_awaited_of_some(tablet: Tablet) -> None:
    """Of a window's items those without a vector are waited for; where the profile counts as many, nobody waits for one that is known."""
    table, out = ItemTable(2), np.zeros(4, DTYPE)
    out["ts_ms"], out["event_id"], out["item_key"] = 5, range(4), [7, 8, 9, 8]
    table.put(7, np.ones(2, np.float32))
    tablet.write(windows=[(user, VERSION + out.tobytes()) for user in (b"before", b"now")])
    found = [Record(b"before", profile("before", [5] * 4, 4)), Record(b"now", profile("now", [5] * 4, 3))]
    put_profiles(tablet, found, set(), table, {"p": 1})
    assert [list(tablet.waiting(key_bytes(n))) for n in (7, 8, 9)] == [[b"before"], [b"before", b"now"], [b"before", b"now"]]
    tablet.close()


def test_noted_once_for_each(tablet: Tablet) -> None:
    """Who waits for something still is not taken back by a row that says it again, and a later row takes back what the last one said."""
    noted = dict[bytes, list[bytes]]()
    for encoder in ("e", "e"):
        put_profiles(tablet, [Record(b"u", profile("u", [1]))], set(), ItemTable(2), {"p": 1}, encoder, noted)
        assert (list(tablet.waiting(FALLBACK)), noted) == ([b"u"], {b"u": [FALLBACK]})
    put_profiles(tablet, [Record(b"u", None)], set(), ItemTable(2), {"p": 2}, "e", noted)
    assert (list(tablet.waiting(FALLBACK)), noted) == ([], {})
    tablet.close()


def test_broken_rows() -> None:
    """Rows that are no windows are an error on either side and under either kind of policy."""
    good, bad = window([1, 2]), b"\x07" + bytes(ROW_BYTES)
    for policy in (POLICY, Policy(6, 1)):
        for old, new in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match="version"):
                merge(old, new, policy)
