"""The update path: the next batches are folded while the rows of those before are on their way, and nothing gets out of order by that."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faust.types import TP

from encoder.baseline import Baseline
from schemas.events import VERSION, Event, encode_event
from schemas.profiles import maker
from streams.core.settings import Settings
from streams.monitoring.metrics import Metrics
from streams.profile.commit import Committer
from streams.profile.encoding_thread import EncodingThread
from streams.profile.late_items import LateItems
from streams.profile.profiler import Profiler, style_of
from streams.profile.recompute import Recomputer
from streams.profile.reencode import Reencoder
from streams.profile.update import Updater
from streams.releases.routing import Lineup, in_canary
from streams.state.item_store import ItemStore
from streams.state.tablet import FALLBACK, UNPUBLISHED, Tablet, publish_in_order
from streams.state.tablets import Tablets
from streams.transport.agents import Finish, add_agent, nothing
from streams.transport.faust_batches import RecordBatch

PARTITION, GENERATION = 2, 7
LINGER_S = 0.04
USERS = 300  # several chunks


class Brokers:
    """Takes rows as streams.transport.sender.Sender does, and acknowledges them only while `open` is set."""

    def __init__(self) -> None:
        self.open, self.sent, self.ends = asyncio.Event(), list[tuple[str, int, int]](), dict[tuple[str, int], int]()
        self.foreign = 0

    async def send(self, topic: str, parts: dict[int, list[Any]]) -> dict[int, int]:
        last = {}
        for partition, rows in parts.items():
            self.sent.append((topic, partition, len(rows)))
            last[partition] = self.ends[topic, partition] = self.ends.get((topic, partition), -1) + len(rows) + self.foreign
        if parts:
            await self.open.wait()
        return last

    async def send_all(self, topics: dict[str, dict[int, list[Any]]]) -> dict[str, dict[int, int]]:
        return {topic: await self.send(topic, parts) for topic, parts in topics.items()}


class Route:
    """An updater with one tablet, and brokers that can be held up."""

    def __init__(self, folder: Path) -> None:
        platform = {"name": "shop", "code": 1, "preset": "plain", "shared_ids": True, "topic": "in"}
        settings = Settings(kafka={"bootstrap": "-"}, platforms=[platform], portrait={"interests": 0})
        self.restoring: list[Tablet] = []
        self.tablets, self.brokers = Tablets(folder, 8, 4, begin_restore=self.restoring.append), Brokers()
        self.store = ItemStore(folder / "items", "space", 8)
        self.lineup = Lineup(Baseline(8, "space"))
        profiler = Profiler(lambda: self.lineup, self.store, style_of(settings), settings.encoding.policy)
        self.pool = ThreadPoolExecutor(1)
        self.metrics = Metrics()
        committer = Committer(settings, self.tablets, self.brokers, self.metrics)  # type: ignore[arg-type]
        thread = EncodingThread(self.pool, self.tablets)
        self.updater = Updater(settings, self.tablets, profiler, self.brokers, committer, thread, self.metrics)  # type: ignore[arg-type]
        self.recomputer = Recomputer(self.tablets, profiler, committer, thread, self.metrics)
        (self.tablet,) = self.tablets.assign({PARTITION}, GENERATION)
        self.tablet.restored.set()
        self._offset = 0

    def batch(self, user: str, n: int = 1) -> RecordBatch:
        rows = []
        for _ in range(n):
            event = Event(VERSION, user, 1000 + self._offset, self._offset, 1, 1, "i", "a")
            rows.append(
                SimpleNamespace(key=user.encode(), value=encode_event(event), timestamp=5, topic="t", partition=PARTITION, offset=self._offset)
            )
            self._offset += 1
        tp = TP("t", PARTITION)
        return RecordBatch("t", PARTITION, self._offset - 1, 0.0, 0, None, None, rows, None, 0, 0, tp, generation_id=GENERATION)

    def events(self, user: bytes) -> int:
        """Events in the stored window."""
        (window,) = self.tablet.windows([user])
        return (len(window) - 1) // 32 if window else 0

    def close(self) -> None:
        self.pool.shutdown()
        self.tablets.close()
        self.store.close()


def on_route(folder: Path, scenario: Callable[[Route], Any]) -> None:
    async def run() -> None:
        route = Route(folder)
        try:
            await asyncio.wait_for(scenario(route), 20)
        finally:
            route.close()

    asyncio.run(run())


async def soon(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_folded_meanwhile(tmp_path: Path) -> None:
    """While a batch's rows wait for the brokers the next one is folded and written, but not sent; it builds on the one before."""

    async def scenario(route: Route) -> None:
        first, second = route.batch("u", 2), route.batch("u", 3)
        one = await route.updater.batches([first])
        await soon(lambda: len(route.brokers.sent) == 1)
        beginning = asyncio.ensure_future(route.updater.batches([second]))
        await soon(lambda: route.events(b"u") == 5)
        assert not one.done()
        assert not beginning.done()
        assert len(route.brokers.sent) == 1
        route.brokers.open.set()
        assert await one == [first]
        assert await (await beginning) == [second]
        assert route.tablet.offset("currents.windows")[0] == 1

    on_route(tmp_path, scenario)


def test_encoded_again_meanwhile(tmp_path: Path) -> None:
    """Users of an earlier encoder are encoded again in chunks, one while the rows of that before wait for the brokers; published, they are done."""

    async def scenario(route: Route) -> None:
        route.brokers.open.set()
        for n in range(USERS):
            await (await route.updater.batches([route.batch(f"u{n}")]))
        users = [f"u{n}".encode() for n in range(USERS)]
        route.lineup = route.lineup.serve(Baseline(8, "other", half_life=5))
        route.brokers.open.clear()
        route.brokers.sent.clear()
        over = asyncio.Event()

        async def done() -> None:
            over.set()

        def made() -> int:
            return sum(maker(route.tablet.profile(u) or b"")[0] == "baseline-5" for u in users)

        again = Reencoder(route.tablets, route.recomputer, lambda: route.lineup, route.metrics, 1e6, lambda: False, done)
        again.restored(route.tablet)
        running = asyncio.ensure_future(again.forever())
        await soon(lambda: len(route.brokers.sent) == 1)
        first = route.brokers.sent[0][2]
        await soon(lambda: made() > first)
        assert route.metrics.value("currents_released_profiles_total") == 0
        assert again.busy()
        route.brokers.open.set()
        await over.wait()
        assert made() == len(users) == route.metrics.value("currents_released_profiles_total")
        assert not again.busy()
        running.cancel()

    on_route(tmp_path, scenario)


def test_encoded_again_in_vain(tmp_path: Path) -> None:
    """Users who were encoded again and then not published, for the generation passed, are owed: the next restore publishes them."""

    async def scenario(route: Route) -> None:
        route.brokers.open.set()
        for user in ("u", "v"):
            await (await route.updater.batches([route.batch(user)]))
        route.brokers.sent.clear()
        async with route.tablet.publishing:
            beginning = asyncio.ensure_future(route.recomputer.recompute(route.tablet, [b"u", b"v"]))
            await soon(lambda: list(route.tablet.waiting(UNPUBLISHED)) == [b"u", b"v"])
            route.tablets.generation = None
        publishing, _ = await beginning
        assert not await publishing
        assert (route.brokers.sent, list(route.tablet.waiting(UNPUBLISHED))) == ([], [b"u", b"v"])
        route.tablets.generation = GENERATION
        assert await route.recomputer.republish(route.tablet, [b"u", b"v", b"gone"])
        assert (route.brokers.sent, list(route.tablet.waiting(UNPUBLISHED))) == ([("currents.windows", 2, 2), ("currents.profiles", 2, 2)], [])

    on_route(tmp_path, scenario)


def test_encoded_again_where_it_tells(tmp_path: Path) -> None:
    """Who waits for an item, or for the encoder, is encoded again only while the profile lacks that: another worker may have made it since."""

    async def scenario(route: Route) -> None:
        route.brokers.open.set()
        for user in ("u", "v"):
            await (await route.updater.batches([route.batch(user)]))
        (key,) = route.tablet.awaited()
        route.store.table.put(int.from_bytes(key, "big"), np.ones(8, np.float32))
        await (await route.updater.batches([route.batch("v")]))
        late = LateItems(route.tablets, route.recomputer, route.metrics, lambda: False)
        running = asyncio.ensure_future(late.forever())

        async def changes(begin: Callable[[], None], waits_for: bytes) -> list[bytes]:
            before = {u: route.tablet.profile(u) for u in (b"u", b"v")}
            begin()
            await soon(lambda: not late.pending())
            assert not list(route.tablet.waiting(waits_for))
            return [u for u, profile in before.items() if profile != route.tablet.profile(u)]

        def fell_back() -> None:
            route.tablet.write(waiting=[(FALLBACK, b"u"), (FALLBACK, b"v")])
            late.fell_back(PARTITION)

        assert await changes(lambda: late.arrived([int.from_bytes(key, "big")]), key) == [b"u"]
        assert route.metrics.value("currents_reencoded_total") == 1
        assert await changes(fell_back, FALLBACK) == []
        route.lineup = route.lineup.serve(Baseline(8, "other", half_life=5))
        assert await changes(fell_back, FALLBACK) == [b"u", b"v"]
        assert await changes(fell_back, FALLBACK) == []
        running.cancel()

    on_route(tmp_path, scenario)


def test_ages_by_encoder(tmp_path: Path) -> None:
    """The age of every profile counts for the encoder that made it."""

    async def scenario(route: Route) -> None:
        route.brokers.open.set()
        route.lineup = Lineup(route.lineup.serving, Baseline(8, "other", half_life=5), 0.5)
        users = [f"u{n}" for n in range(40)]
        tried = sum(in_canary(u.encode(), "baseline-5", 0.5) for u in users)
        for user in users:
            await (await route.updater.batches([route.batch(user, 2)]))

        def profiles(**labels: str) -> float:
            return route.metrics.value("currents_profile_age_seconds_count", **labels)

        assert 0 < tried < 40
        assert (profiles(version="baseline-5"), profiles(version="baseline-3"), profiles()) == (tried, 40 - tried, 40)
        assert route.metrics.value("currents_event_age_seconds_count") == 80

    on_route(tmp_path, scenario)


def test_freeze_waits_for_what_is_published(tmp_path: Path) -> None:
    """A rebalance waits for rows that are on their way; what comes afterwards is of a generation that has passed, and is not acked."""

    async def scenario(route: Route) -> None:
        one = await route.updater.batches([route.batch("u")])
        frozen = asyncio.ensure_future(route.tablets.freeze())
        late = asyncio.ensure_future(route.updater.batches([route.batch("u")]))
        await asyncio.sleep(0.05)
        assert not frozen.done()
        route.brokers.open.set()
        await frozen
        assert len(await one) == 1
        assert await (await late) == []
        assert route.events(b"u") == 1

    on_route(tmp_path, scenario)


def test_generation_passes_between(tmp_path: Path) -> None:
    """A batch that was written when its generation passed is not published."""

    async def scenario(route: Route) -> None:
        route.brokers.open.set()
        async with route.tablet.publishing:
            beginning = asyncio.ensure_future(route.updater.batches([route.batch("u")]))
            await soon(lambda: route.events(b"u") == 1)
            route.tablets.generation = None
        assert await (await beginning) == []
        assert route.brokers.sent == []

    on_route(tmp_path, scenario)


def test_distrusted_meanwhile(tmp_path: Path) -> None:
    """A tablet in whose changelog the batch before found another worker's rows is restored before the next batch is folded."""

    async def scenario(route: Route) -> None:
        route.brokers.foreign = 1
        one = await route.updater.batches([route.batch("u")])
        await route.tablet.lock.acquire()
        beginning = asyncio.ensure_future(route.updater.batches([route.batch("u")]))
        await asyncio.sleep(0.02)  # it waits for the lock
        route.brokers.open.set()
        await one
        assert route.restoring == [route.tablet]
        route.tablet.lock.release()
        await asyncio.sleep(0.05)
        assert route.events(b"u") == 1
        route.brokers.foreign = 0
        route.tablet.restored.set()
        assert len(await (await beginning)) == 1
        assert route.events(b"u") == 2

    on_route(tmp_path, scenario)


def test_turns(tmp_path: Path) -> None:
    """What is written is published in that order, and a turn ends also by an error, or before it began."""

    async def scenario(route: Route) -> None:
        order = []

        async def publish(n: int) -> None:
            order.append(n)
            if n == 1:
                raise ValueError

        gone = await publish_in_order([route.tablet], publish(0))
        gone.cancel()
        failed = await publish_in_order([route.tablet], publish(1))
        last = await publish_in_order([route.tablet], publish(2))
        await last
        assert order == [1, 2]
        assert isinstance(failed.exception(), ValueError)
        await route.tablet.idle()

    on_route(tmp_path, scenario)


class App:
    """As much of Faust as `add_agent` needs: a stream of events, and the news of a crash."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.crashed: list[BaseException] = []
        self.acked: list[int] = []

    def batch_topic(self, name: str) -> str:
        return name

    def agent(self, topic: str, name: str) -> Callable[[Any], None]:
        def take(run: Any) -> None:
            self.run = run

        return take

    async def crash(self, error: BaseException) -> None:
        self.crashed.append(error)

    def noack(self) -> "App":
        return self

    def put(self, n: int) -> None:
        message = SimpleNamespace(value=[n], n=n)
        self.events.put_nowait(SimpleNamespace(message=message, ack=lambda: self.acked.append(n)))

    async def stream(self) -> AsyncIterator[Any]:
        while True:
            yield await self.events.get()


@pytest.mark.parametrize("fails", ["handling", "finishing", "nothing"])
def test_agent(fails: str) -> None:
    """Batches are handled while those before are finished, two at most; acks keep their order, and an error in either ends the app."""

    async def scenario() -> None:
        app, begun, gates = App(), list[int](), [asyncio.Event() for _ in range(4)]

        async def finish(batches: Any) -> Any:
            await gates[batches[0].n].wait()
            if fails == "finishing" and batches[0].n == 1:
                raise ValueError("at the end")
            return batches

        async def handle(batches: Any) -> Finish:
            begun.append(batches[0].n)
            if fails == "handling" and batches[0].n == 1:
                raise ValueError("at once")
            return asyncio.create_task(finish(batches))

        add_agent(app, "t", "a", handle, 1)  # type: ignore[arg-type]
        agent = asyncio.ensure_future(app.run(SimpleNamespace(noack=lambda: SimpleNamespace(events=app.stream))))
        for n in range(4):
            app.put(n)
        if fails == "handling":
            await soon(lambda: app.crashed)
        else:
            await soon(lambda: begun == [0, 1])
            await asyncio.sleep(0.02)
            assert begun == [0, 1]
            gates[1].set()
            await asyncio.sleep(0.02)
            assert app.acked == []
            for gate in gates:
                gate.set()
            await soon(lambda: app.crashed if fails == "finishing" else app.acked == [0, 1, 2, 3])
        assert [str(e) for e in app.crashed] == {"handling": ["at once"], "finishing": ["at the end"], "nothing": []}[fails]
        assert 1 not in app.acked or fails == "nothing"
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_linger() -> None:
    """Lots of one agent begin no faster than its linger: the first at once, and what comes meanwhile together."""

    async def scenario() -> None:
        app, begun, lots = App(), list[float](), list[int]()

        async def handle(batches: Any) -> Finish:
            begun.append(time.monotonic())
            lots.append(len(batches))
            return nothing()

        add_agent(app, "t", "a", handle, 1000, LINGER_S)  # type: ignore[arg-type]
        agent = asyncio.ensure_future(app.run(SimpleNamespace(noack=lambda: SimpleNamespace(events=app.stream))))
        for n in range(20):
            app.put(n)
            await asyncio.sleep(LINGER_S / 10)
        await soon(lambda: sum(lots) == 20)
        assert lots[0] < 3
        assert min(b - a for a, b in pairwise(begun)) > 0.99 * LINGER_S
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_nothing() -> None:
    """Nothing to be done is done at once, and acks nothing."""

    async def scenario() -> None:
        assert await nothing() == []

    asyncio.run(scenario())
