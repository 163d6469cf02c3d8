"""Tablets: rows, atomic batches, who may write, two users of one folder."""

import asyncio
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
from streams.state.tablet import Tablet, key_bytes
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
