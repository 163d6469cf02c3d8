"""Tablets: rows, atomic batches, who may write, two users of one folder."""

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from streams.core.cancel import to_thread
from streams.core.errors import StorageError
from streams.core.process import claim
from streams.monitoring.metrics import Metrics
from streams.profile.encoding_thread import EncodingThread
from streams.profile.late_items import LateItems
from streams.profile.recompute import Recomputer
from streams.state.tablet import FALLBACK, UNPUBLISHED, Tablet, key_bytes, publish_in_order
from streams.state.tablets import Tablets


def test_rows(tmp_path: Path) -> None:
    """What one write puts is there after closing and opening again."""
    tablet = Tablet(3, tmp_path / "t")
    tablet.write([(b"u", b"w")], [(b"u", b"p")], [(b"\0" * 8, b"u")], offsets={"topic": 5}, now_ms=7)
    tablet.close()
    again = Tablet(3, tmp_path / "t")
    assert (again.windows([b"u", b"x"]), again.profile(b"u"), again.offset("topic"), again.offset("other")) == ([b"w", None], b"p", (5, 7), (-1, 0))
    again.write([(b"u", None)], [(b"u", None)])
    assert (again.windows([b"u"]), again.profile(b"u"), list(again.scan("windows"))) == ([None], None, [])
    again.close()


def test_waiting(tmp_path: Path) -> None:
    """Users who wait for an item are found by its key, and each awaited item once."""
    tablet = Tablet(0, tmp_path / "t")
    a, b, last = b"\0" * 8, b"\0" * 7 + b"\1", b"\xff" * 8
    tablet.write(waiting=[(a, b"u"), (a, b"v"), (b, b"u"), (last, b"z")])
    assert (list(tablet.waiting(a)), list(tablet.awaited())) == ([b"u", b"v"], [a, b, last])
    tablet.write(resolved=[(a, b"u"), (a, b"v"), (last, b"z")])
    assert (list(tablet.waiting(a)), list(tablet.awaited())) == ([], [b])
    tablet.close()


def test_generations(tmp_path: Path) -> None:
    """A batch gets a tablet only in its own generation, and only once the tablet is restored."""

    async def scenario() -> None:
        tablets = Tablets(tmp_path, 8, 4)
        (one,) = tablets.assign({1}, 7)
        asked = asyncio.ensure_future(tablets.ready(1, 7))
        await asyncio.sleep(0.01)
        assert not asked.done()
        one.restored.set()
        assert await asked is one
        assert await tablets.ready(1, 6) is None
        assert await tablets.ready(2, 7) is None
        await tablets.freeze()
        assert await tablets.ready(1, 7) is None
        assert tablets.assign({1}, 8) == [one]
        assert not one.restored.is_set()
        one.restored.set()
        assert await tablets.ready(1, 8) is one
        tablets.close()

    asyncio.run(scenario())


class Noted(Recomputer):
    """One that notes whom it is to encode again."""

    def __init__(self, tablets: Tablets) -> None:
        self.users, self._tablets, self._thread = list[bytes](), tablets, EncodingThread(ThreadPoolExecutor(1), tablets)

    async def outdated(self, tablet: Tablet, users: list[bytes]) -> list[bytes]:
        return users

    async def recompute(self, tablet: Tablet, users: list[bytes]) -> "tuple[asyncio.Task[bool], float]":
        self.users += users
        return asyncio.create_task(asyncio.sleep(0, True)), 0.0


@pytest.mark.parametrize("waits_for", ["restore", "live events"])
def test_late_items_outlive_a_rebalance(tmp_path: Path, waits_for: str) -> None:
    """Items that came late are not forgotten when the generation passes while their tablet, or a quiet moment, is waited for."""

    async def scenario() -> None:
        tablets, overloaded = Tablets(tmp_path, 8, 4), waits_for == "live events"
        noted = Noted(tablets)
        late = LateItems(tablets, noted, Metrics(), lambda: overloaded)
        (tablet,) = tablets.assign({1}, 7)
        tablet.write(waiting=[(key_bytes(5), b"u")])
        if overloaded:
            tablet.restored.set()
        running = asyncio.create_task(late.forever())
        late.arrived([5])
        await asyncio.sleep(0.05)
        tablets.assign({1}, 8)
        tablet.restored.set()
        overloaded = False
        async with asyncio.timeout(20):
            while not noted.users or late.pending():
                await asyncio.sleep(0.05)
        running.cancel()
        assert (noted.users, late.pending(), list(tablet.awaited())) == ([b"u"], 0, [])
        tablets.close()

    asyncio.run(scenario())


def test_freeze_waits(tmp_path: Path) -> None:
    """Revoking waits for the batch in flight and stops a restore."""

    async def scenario() -> None:
        tablets = Tablets(tmp_path, 8, 4)
        one, two = tablets.assign({1, 2}, 1)
        two.restore_by(lambda: asyncio.sleep(60), asyncio.ensure_future)
        await one.lock.acquire()
        frozen = asyncio.ensure_future(tablets.freeze())
        await asyncio.sleep(0.01)
        assert not frozen.done()
        one.lock.release()
        await frozen
        assert two.restores[0].cancelled()
        tablets.close()

    asyncio.run(scenario())


def test_one_restore_at_a_time(tmp_path: Path) -> None:
    """A restore begins once the one under way has ended; revoking waits for all, also where the newest never began."""

    async def scenario() -> None:
        tablets, said, may = Tablets(tmp_path, 8, 4), list[str](), threading.Event()
        (tablet,) = tablets.assign({1}, 1)

        async def restore(name: str) -> None:
            said.append(f"{name} begins")
            try:
                await to_thread(may.wait, 20)
            finally:
                said.append(f"{name} ends")

        for name in ("first", "second", "third"):
            tablet.restore_by(partial(restore, name), asyncio.ensure_future)
            await asyncio.sleep(0.01)
        tablet.restore_by(partial(restore, "fourth"), asyncio.ensure_future)
        frozen = asyncio.ensure_future(tablets.freeze())
        await asyncio.sleep(0.01)
        assert (said, frozen.done()) == (["first begins"], False)
        may.set()
        await frozen
        assert said == ["first begins", "first ends"]
        tablet.restore_by(partial(restore, "fifth"), asyncio.ensure_future)
        await asyncio.gather(*tablet.restores)
        assert said[2:] == ["fifth begins", "fifth ends"]
        tablets.close()

    asyncio.run(scenario())


def test_wipe(tmp_path: Path) -> None:
    """An emptied tablet has neither rows nor offsets, and works on."""
    tablets = Tablets(tmp_path, 8, 4)
    (tablet,) = tablets.assign({1}, 1)
    tablet.write([(b"u", b"w")], offsets={"t": 1}, now_ms=1)
    tablet.wipe()
    assert (list(tablet.scan("windows")), tablet.offset("t")) == ([], (-1, 0))
    tablet.write([(b"u", b"w2")])
    assert tablet.windows([b"u"]) == [b"w2"]
    tablets.close()


def test_closed_when_gone(tmp_path: Path) -> None:
    """A tablet that went to another worker is closed, so that its files can be opened again."""
    tablets = Tablets(tmp_path, 8, 4)
    tablets.assign({1, 2}, 1)
    tablets.assign({2}, 2)
    tablets.open(1).close()
    with pytest.raises(StorageError, match="another worker"):
        tablets.open(2)
    tablets.close()


def test_one_worker_per_folder(tmp_path: Path) -> None:
    """A second worker on a data folder is told so."""
    held = claim(tmp_path / "data")
    with pytest.raises(StorageError, match="another worker runs in it"):
        claim(tmp_path / "data")
    held.close()
    claim(tmp_path / "data").close()


def test_foreign_rows(tmp_path: Path) -> None:
    """Rows of another worker among or before ours: the tablet is not trusted, and its offset stays in front of them."""
    found = list[Tablet]()
    tablets = Tablets(tmp_path, 8, 4, begin_restore=found.append)
    (tablet,) = tablets.assign({1}, 1)
    tablet.restored.set()
    tablets.published(tablet, "t", rows=3, last=2, now_ms=1)
    assert (tablet.offset("t"), found) == ((2, 1), [])
    tablets.published(tablet, "t", rows=2, last=9, now_ms=2)
    tablets.published(tablet, "u", rows=2, last=9, now_ms=2)
    assert (tablet.offset("t"), found, tablet.restored.is_set()) == ((2, 1), [tablet], False)
    tablets.close()


def test_foreign_rows_while_revoked(tmp_path: Path) -> None:
    """Rows of another worker found while partitions are on the move begin no restore, which nobody would end before the tablet is closed."""

    async def scenario() -> None:
        found = list[Tablet]()
        tablets = Tablets(tmp_path, 8, 4, begin_restore=found.append)
        (tablet,) = tablets.assign({1}, 1)
        tablet.restored.set()
        await tablet.publishing.acquire()
        frozen = asyncio.ensure_future(tablets.freeze())
        await asyncio.sleep(0.01)
        tablets.published(tablet, "t", rows=2, last=9, now_ms=2)
        tablet.publishing.release()
        await frozen
        assert (found, tablet.foreign_rows_seen, tablet.restored.is_set()) == ([], True, False)
        tablets.close()

    asyncio.run(scenario())


def test_keys_of_waiting() -> None:
    """Items are awaited by their key in big-endian order, the encoder by the first of all keys, a changelog's row by the last."""
    assert key_bytes(0x0102030405060708).hex() == "0102030405060708"
    assert (key_bytes(0), key_bytes(2**64 - 1)) == (FALLBACK, UNPUBLISHED)


def test_waiting_for_one_item(tmp_path: Path) -> None:
    """Users who wait for an item are those of its very key, not of the next one there is."""
    tablet = Tablet(0, tmp_path / "t")
    tablet.write(waiting=[(key_bytes(n), user) for n in (3, 5, 6) for user in (b"u", b"\xf0\x9f\x98\x80" * 300)])
    assert [list(tablet.waiting(key_bytes(n))) for n in (4, 7)] == [[], []]
    assert list(tablet.waiting(key_bytes(5))) == [b"u", b"\xf0\x9f\x98\x80" * 300]
    assert list(tablet.awaited()) == [key_bytes(n) for n in (3, 5, 6)]
    tablet.close()


def test_size(tmp_path: Path) -> None:
    """A tablet tells its users and its bytes, and all tablets together theirs."""
    tablets = Tablets(tmp_path, 8, 4)
    for tablet in tablets.assign({1, 2}, 1):
        assert (tablet.size()["users"], tablet.size()["disk"]) == (0, 0)
        tablet.write([(b"u", b"w" * 2000)], [(b"u", b"p" * 1000), (b"v", b"p" * 1000)])
        tablet.compact()
        assert tablet.size()["users"] == 2
    for what in ("disk", "memory"):
        assert tablets.total(what) == sum(tablet.size()[what] for tablet in tablets) > 0
    assert tablets.total("users") == 4
    tablets.close()
    assert list(tablets) == []


def test_flush(tmp_path: Path) -> None:
    """What was flushed is on the disk, in every table; what was written after that is not."""
    tablet = Tablet(0, tmp_path / "t")
    tablet.write([(b"u", b"w")], [(b"u", b"p")], [(key_bytes(1), b"u")], offsets={"t": 4}, now_ms=9)
    tablet.flush()
    tablet.write([(b"v", b"w")], offsets={"t": 5}, now_ms=10)
    shutil.copytree(tmp_path / "t", tmp_path / "copy")
    copy = Tablet(0, tmp_path / "copy")
    assert (dict(copy.scan("windows")), dict(copy.scan("profiles")), list(copy.awaited())) == ({b"u": b"w"}, {b"u": b"p"}, [key_bytes(1)])
    assert copy.offset("t") == (4, 9)
    copy.close()
    tablet.close()


def test_flushed_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tablets are flushed again and again, one whose batch is being written once that is done."""
    monkeypatch.setattr("streams.state.tablets.FLUSH_S", 0.01)

    async def scenario() -> None:
        tablets, flushed = Tablets(tmp_path, 8, 4), list[int]()
        for tablet in tablets.assign({1, 2}, 1):
            monkeypatch.setattr(tablet, "flush", partial(flushed.append, tablet.partition))
        _, two = tablets
        await two.lock.acquire()
        flushing = asyncio.create_task(tablets.flush_forever())
        async with asyncio.timeout(20):
            while not flushed:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert flushed == [1]
            two.lock.release()
            while flushed.count(2) < 2:
                await asyncio.sleep(0.01)
            await two.lock.acquire()
            await asyncio.sleep(0.05)  # the flushing waits for the lock of a tablet that goes meanwhile
            tablets.assign({1}, 2)
            two.lock.release()
            before = flushed.count(2)
            while flushed[-2:] != [1, 1]:
                await asyncio.sleep(0.01)
            assert flushed.count(2) == before
        flushing.cancel()
        tablets.close()

    asyncio.run(scenario())


def test_closed(tmp_path: Path) -> None:
    """A tablet that is closed is no damaged one: its folder is not marked, and opens again."""
    tablet = Tablet(0, tmp_path / "t")
    tablet.write([(b"u", b"w")])
    tablet.close()
    for use in (lambda: tablet.profile(b"u"), lambda: tablet.windows([b"u"]), lambda: tablet.write([(b"u", b"w")]), tablet.flush):
        with pytest.raises(KeyError):
            use()
    again = Tablet(0, tmp_path / "t")
    assert again.windows([b"u"]) == [b"w"]
    again.close()


def test_who_holds(tmp_path: Path) -> None:
    """A generation holds a tablet once it is restored, and until the generation has passed."""

    async def scenario() -> None:
        tablets = Tablets(tmp_path, 8, 4)
        assert tablets.generation is None
        (tablet,) = tablets.assign({1}, 7)
        assert (tablets.get(1), tablets.get(2), tablets.holds(tablet, 7)) == (tablet, None, False)
        tablet.restored.set()
        assert [tablets.holds(tablet, generation) for generation in (7, 6, None)] == [True, False, False]
        assert [await tablets.wait_within_generation(generation, 0.02) for generation in (7, 6, None)] == [True, False, False]
        assert [await tablets.may_publish(generation) for generation in (7, 6, None)] == [True, False, False]
        await tablets.freeze()
        assert [tablets.holds(tablet, generation) for generation in (7, None)] == [False, False]
        assert [await tablets.wait_within_generation(generation, 0.02) for generation in (7, None)] == [False, False]
        assert [await tablets.may_publish(generation) for generation in (7, None)] == [False, False]
        assert await tablets.ready(1, 7) is None
        tablets.close()

    asyncio.run(scenario())


def test_waits_end_with_the_generation(tmp_path: Path) -> None:
    """Whoever waits for a tablet, for time to pass or for the group's word stops waiting when the generation passes."""

    async def scenario() -> None:
        tablets = Tablets(tmp_path, 8, 4, is_member=lambda: False)
        (tablet,) = tablets.assign({1}, 7)
        waits = [asyncio.ensure_future(w) for w in (tablets.ready(1, 7), tablets.wait_within_generation(7, 3600), tablets.may_publish(7))]
        await asyncio.sleep(0.1)
        assert not any(wait.done() for wait in waits)
        tablets.assign({1}, 8)
        async with asyncio.timeout(20):
            assert await asyncio.gather(*waits) == [None, False, False]
        assert not tablet.restored.is_set()
        tablets.close()

    asyncio.run(scenario())


def test_publishing_waits_for_the_group(tmp_path: Path) -> None:
    """Rows are published once it is known that the group has this worker."""

    async def scenario() -> None:
        member = False
        tablets = Tablets(tmp_path, 8, 4, is_member=lambda: member)
        tablets.assign({1}, 7)
        asked = asyncio.ensure_future(tablets.may_publish(7))
        await asyncio.sleep(0.1)
        assert not asked.done()
        member = True
        async with asyncio.timeout(20):
            assert await asked is True
        tablets.close()

    asyncio.run(scenario())


def test_turn_that_is_given_up(tmp_path: Path) -> None:
    """Who is cancelled while it waits for its turn has begun nothing and lets every tablet go; a turn of several waits for all of them."""

    async def scenario() -> None:
        tablets, published = Tablets(tmp_path, 8, 4), list[str]()
        one, two = tablets.assign({1, 2}, 1)

        async def publish(name: str) -> None:
            published.append(name)

        await two.publishing.acquire()
        given_up = asyncio.ensure_future(publish_in_order([two, one], publish("given up")))
        await asyncio.sleep(0.01)
        assert one.publishing.locked()
        given_up.cancel()
        await asyncio.wait([given_up])
        assert (given_up.cancelled(), one.publishing.locked(), two.publishing.locked()) == (True, False, True)
        both = asyncio.ensure_future(publish_in_order([two, one], publish("both")))
        await asyncio.sleep(0.01)
        assert published == []
        two.publishing.release()
        publishing = await both
        assert one.publishing.locked()
        assert two.publishing.locked()
        await publishing
        await asyncio.gather(one.idle(), two.idle())
        assert published == ["both"]
        tablets.close()

    asyncio.run(scenario())


def test_idle(tmp_path: Path) -> None:
    """A tablet is idle while nothing of it is written and nothing published."""

    async def scenario() -> None:
        tablet = Tablet(0, tmp_path / "t")
        for lock in (tablet.lock, tablet.publishing):
            await lock.acquire()
            waiting = asyncio.ensure_future(tablet.idle())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            lock.release()
            await waiting
        tablet.close()

    asyncio.run(scenario())


def test_offsets_of_what_was_published(tmp_path: Path) -> None:
    """Rows that follow those that are noted move the offset on; with fewer or more among them it stays, whether the tablet is restored or not."""
    found = list[Tablet]()
    tablets = Tablets(tmp_path, 8, 4, begin_restore=found.append)
    (tablet,) = tablets.assign({1}, 1)
    tablets.published(tablet, "t", rows=1, last=0, now_ms=5)
    tablets.published(tablet, "t", rows=2, last=2, now_ms=6)
    assert (tablet.offset("t"), tablet.foreign_rows_seen) == ((2, 6), False)
    tablets.published(tablet, "t", rows=2, last=3, now_ms=7)
    assert (tablet.offset("t"), tablet.foreign_rows_seen, found) == ((2, 6), True, [])
    tablets.close()


def test_wiped_alone(tmp_path: Path) -> None:
    """A tablet is emptied in place, under its own number, and leaves nothing of it behind; the others keep their rows."""
    tablets = Tablets(tmp_path, 8, 4)
    one, two = tablets.assign({1, 2}, 1)
    for tablet in (one, two):
        tablet.write([(b"u", b"w")])
    one.wipe()
    assert (one.windows([b"u"]), two.windows([b"u"]), list(tablets)) == ([None], [b"w"], [one, two])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tablet-1", "tablet-2"]
    one.write([(b"u", b"x")])
    tablets.close()
    one, two = tablets.assign({1, 2}, 2)
    assert (one.windows([b"u"]), two.windows([b"u"])) == ([b"x"], [b"w"])
    tablets.close()


def test_closed_for_good(tmp_path: Path) -> None:
    """Once closed nobody's generation lasts, and no tablet is there."""
    tablets = Tablets(tmp_path, 8, 4)
    (tablet,) = tablets.assign({1}, 7)
    tablet.restored.set()
    tablets.close()
    assert (tablets.generation, tablets.holds(tablet, 7), tablets.get(1)) == (None, False, None)
    tablets.open(1).close()


def test_folder_that_is_gone(tmp_path: Path) -> None:
    """Rows that cannot be brought to the disk are an error that names the folder, whether they are written or flushed."""
    tablet = Tablet(0, tmp_path / "tablet", write_buffer_bytes=64 << 10)
    tablet.write([(b"u", b"w")])
    shutil.rmtree(tmp_path / "tablet")
    with pytest.raises(StorageError, match="tablet"):
        tablet.flush()

    def fill() -> None:
        for n in range(1000):
            tablet.write([(b"%d" % n, bytes(4096))])

    with pytest.raises(StorageError, match="tablet"):
        fill()
    tablet.close()


def test_long_restore(tmp_path: Path) -> None:
    """A tablet is waited for as long as its restore takes, past the moments at which the generation is looked at."""

    async def scenario() -> None:
        tablets = Tablets(tmp_path, 8, 4)
        (tablet,) = tablets.assign({1}, 7)
        asked = asyncio.ensure_future(tablets.ready(1, 7))
        await asyncio.sleep(0.7)
        tablet.restored.set()
        assert await asked is tablet
        tablets.close()

    asyncio.run(scenario())
