"""A worker whose encoder changes while events arrive."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import orjson
import pytest
from aiokafka import AIOKafkaProducer

from encoder.base import Encoder
from encoder.bundle import ONNX
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.profiles import Profile, decode_profile
from schemas.releases import Release, encode_release
from streams.audit.vectors import Vectors, check_vectors
from streams.core.clock import now_ms
from streams.core.settings import Settings
from streams.processes.worker import Worker, running
from streams.releases.release_log import announce, candidate
from streams.releases.routing import in_canary
from streams.transport.reading import read_topic
from testkit import live
from testkit.bundles import nan_weights, rewrite, variant
from testkit.live import PARTITIONS, until

pytestmark = pytest.mark.broker
ITEMS, USERS = 210, 40
KINDS = ("Green tea pot", "Trail running shoes", "Jazz guitar", "Tomato seedlings", "Chess clock", "Oil paint", "Robot arm")


def settings_of(bootstrap: str, folder: Path, **releases: Any) -> Settings:
    return live.settings_of(bootstrap, folder, releases={"retry_s": 0.2, **releases})


class Load:
    """Events of users on known items, each of a time of its own."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._settings, self._producer, self._r, self.sent = settings, producer, random.Random(1), 0
        self._from = now_ms() - 10_000_000

    async def items(self, worker: Worker) -> None:
        for n in range(ITEMS):
            row = {"id": f"i{n}", "title": f"{KINDS[n % 7]} {n}", "categories": [KINDS[n % 7]]}
            await self._producer.send(self._settings.platforms[0].items_topic, orjson.dumps(row))
        await until(lambda: _true(worker.store.table.size > ITEMS))

    async def events(self, n: int, users: int = USERS, taste: bool = False, **other: str) -> None:
        """`taste`: of things of the user's own kind. `other`: fields that are other than usual."""
        for _ in range(n):
            self.sent += 1
            user, item = self._r.randrange(users), self._r.randrange(ITEMS)
            if self.sent <= users:
                user = self.sent - 1  # everybody, before anybody comes again
            row: dict[str, Any] = {
                "account": f"u{user}", "item": f"i{item // 7 * 7 % (ITEMS - 7) + user % 7 if taste else item}", "behavior": "view",
                "time": self._from + self.sent * 1000, "id": str(self.sent), **other,
            }  # fmt: skip
            await self._producer.send(self._settings.platforms[0].topic, orjson.dumps(row), row["account"].encode())  # in order within a user
        await self._producer.flush()

    async def folded(self, worker: Worker) -> None:
        await until(lambda: _true(worker.metrics.value("currents_folded_total") >= self.sent))


async def _settled(worker: Worker, release: Release) -> bool:
    """Whether a worker serves a release, or has refused it."""
    return worker.encoder.version == release.version or release.version in worker.lifecycle.swapper.refused


async def _true(value: bool) -> bool:
    return value


@contextlib.asynccontextmanager
async def loaded(settings: Settings) -> AsyncIterator[tuple[Worker, Load]]:
    """A worker that knows all items."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    await producer.start()
    try:
        async with running(settings) as worker:
            load = Load(settings, producer)
            await load.items(worker)
            yield worker, load
    finally:
        await producer.stop()


async def tell(settings: Settings, channel: Any, release: Release) -> None:
    await announce(settings.kafka, settings.topic("releases"), channel, release)


def stored(worker: Worker) -> dict[str, Profile]:
    return {u.decode(): decode_profile(p) for t in worker.tablets for u, p in t.scan("profiles")}


async def everybody_is_of(worker: Worker, version: str, users: int = USERS) -> None:
    async def are() -> bool:
        found = stored(worker)
        return len(found) == users and all(p.encoder_version == version for p in found.values())

    await until(are)


async def published(settings: Settings, encoders: Iterable[Encoder]) -> Vectors:
    """What the rows of the profile changelog are."""
    profiles, log, items = [await read_topic(settings.kafka, settings.topic(n), PARTITIONS) for n in ("profiles", "events", "item-vectors")]
    return check_vectors(profiles, log, items, encoders, {1: "shop"}, settings.encoding.policy)


def test_swaps_under_load(bootstrap: str, tmp_path: Path) -> None:
    """Across several swaps, refusals and a way back, every published vector is made by the encoder that it names, and nothing is lost."""
    settings = settings_of(bootstrap, tmp_path)
    releases = {n: variant(tmp_path / n, n, i) for i, n in enumerate(("v1", "v2"))}
    releases["v3"] = variant(tmp_path / "minor", "v3", 9, 0.1, tmp_path / "v1", space_id="space-v1")
    broken = msgspec.structs.replace(releases["v1"], version="bad", digest="0" * 64)

    async def scenario() -> Any:
        async with loaded(settings) as (worker, load):
            assert worker.encoder.version == "baseline-3"
            await load.events(60)
            await load.folded(worker)  # so that the baseline too has made some
            for release in (releases["v1"], releases["v2"], broken, releases["v1"], releases["v3"]):
                await load.events(120)
                await tell(settings, "serving", release)
                await load.events(120)
                await until(partial(_settled, worker, release))
                await load.events(60)
            await load.folded(worker)
            await everybody_is_of(worker, "v3")
            async with httpx.AsyncClient(base_url=worker.url) as client:
                health = (await client.get("/healthz")).json()
            return worker.metrics.value("currents_swap_seconds_count"), health

    swaps, health = asyncio.run(scenario())
    assert swaps == 4
    assert health["encoders"]["serving"] == "v3"
    assert "sha256" in health["refused"]["bad"]
    tower = load_tower("static")
    encoders = [load_encoder(where, tower.space_id, tower.dims) for where in ("baseline", *(r.bundle for r in releases.values()))]
    found = asyncio.run(published(settings, encoders))
    assert (found.unknown_releases, found.wrong, found.untold, found.mixed_space_pairs) == (0, 0, 0, 0)
    assert {version for version, _ in found.releases} == {"baseline-3", "v1", "v2", "v3"}
    assert found.rows >= 40


def test_starts_with_the_topic(bootstrap: str, tmp_path: Path) -> None:
    """A worker begins with what the topic serves, and encodes again whom another encoder left; with `follow` off it takes its setting."""
    settings = settings_of(bootstrap, tmp_path)
    v1, v2 = variant(tmp_path / "1", "v1", 1), variant(tmp_path / "2", "v2", 2)

    async def scenario() -> None:
        async with loaded(settings) as (worker, load):
            await load.events(100, 20)
            await load.folded(worker)
            await everybody_is_of(worker, "baseline-3", 20)
        await tell(settings, "serving", v1)
        await tell(settings, "serving", v2)
        async with running(settings) as worker:
            assert worker.encoder.version == "v2"
            await everybody_is_of(worker, "v2", 20)
            await until(lambda: _true(worker.metrics.value("currents_released_profiles_total") == 20))
        off = settings.model_copy(update={"releases": settings.releases.model_copy(update={"follow": "off"})})
        async with running(off) as worker:
            assert worker.encoder.version == "baseline-3"

    asyncio.run(scenario())


def test_canary_users(bootstrap: str, tmp_path: Path) -> None:
    """A share of the users gets the candidate's vectors, labelled so and ranked by its items; when the trial ends they get the serving ones again."""
    settings = settings_of(bootstrap, tmp_path)
    v1 = msgspec.structs.replace(variant(tmp_path / "1", "v1", 1), state="canary", share=0.4)

    async def scenario() -> None:
        async with loaded(settings) as (worker, load), httpx.AsyncClient(base_url=worker.url) as client:
            await load.events(300)
            await load.folded(worker)
            await tell(settings, "candidate", v1)
            chosen = {f"u{n}" for n in range(USERS) if in_canary(f"u{n}".encode(), "v1", 0.4)}

            async def are_tried() -> bool:
                return {u for u, p in stored(worker).items() if p.encoder_version == "v1" and p.space_id == "space-v1"} == chosen

            await until(are_tried)
            assert 0 < len(chosen) < USERS
            await load.events(100)
            await load.folded(worker)
            assert await are_tried()
            for user, space in ((next(iter(chosen)), "space-v1"), (next(f"u{n}" for n in range(USERS) if f"u{n}" not in chosen), "static")):
                answer = (await client.post(f"/v1/profiles/{user}:rank", json={"items": ["shop:i1", "shop:i2"]})).json()
                assert answer["space_id"].startswith(space)
                assert len(answer["ranked"]) == 2
            await tell(settings, "candidate", msgspec.structs.replace(v1, state="rolled-back", share=0.0))
            await everybody_is_of(worker, "baseline-3")

    asyncio.run(scenario())


def test_invalid_record_changes_nothing(bootstrap: str, tmp_path: Path) -> None:
    """A worker that meets records that are not valid goes on, and counts them."""
    settings = settings_of(bootstrap, tmp_path)

    async def scenario() -> None:
        async with loaded(settings) as (worker, load):
            producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
            await producer.start()
            for key, value in ((b"serving", b"\xc1"), (b"other", encode_release(variant(tmp_path / "1", "v1", 1))), (b"serving", None)):
                await producer.send_and_wait(settings.topic("releases"), value, key, partition=0)
            await producer.stop()
            await until(lambda: _true(worker.metrics.value("currents_releases_refused_total") == 3))
            await load.events(50)
            await load.folded(worker)
            assert worker.encoder.version == "baseline-3"
            assert {u.encoder_version for u in stored(worker).values()} == {"baseline-3"}

    asyncio.run(scenario())


@pytest.mark.parametrize("better", [True, False], ids=["better", "worse"])
def test_trial_is_decided(bootstrap: str, tmp_path: Path, better: bool) -> None:
    """A canary that is better on arriving events is promoted, a worse one rolled back, by one record with figures; all users follow."""
    settings = settings_of(bootstrap, tmp_path, observed_per_s=2000, least_events=150, tolerated_loss=0.05)
    noise = variant(tmp_path / "noise", "noise", 1, 30.0)
    day_0 = Release("baseline-3", load_tower("static").space_id, "", "", "serving", 1.0, "", 1, "test", "")
    served, tried = (noise, day_0) if better else (day_0, noise)

    async def scenario() -> None:
        async with loaded(settings) as (worker, load):
            await tell(settings, "serving", served)
            await load.events(100, taste=True)
            await until(lambda: _true(worker.encoder.version == served.version))
            await tell(settings, "candidate", msgspec.structs.replace(tried, state="canary", share=0.3))
            await until(lambda: _true(worker.lifecycle.lineup().candidate is not None))
            history = worker.lifecycle.swapper.history

            async def ended() -> bool:
                await load.events(40, taste=True)
                await load.folded(worker)
                return len(history) > 2

            await until(ended)
            assert len(history) == 3
            last = history[2]
            assert last.release is not None
            assert (last.channel, last.release.version) == (("serving", "baseline-3") if better else ("candidate", "noise"))
            assert last.release.state == ("promoted" if better else "rolled-back")
            assert last.release.metrics["online_events"] >= 150
            assert worker.url in last.release.by
            await everybody_is_of(worker, "baseline-3")

    asyncio.run(scenario())


def test_slow_candidate_is_over(bootstrap: str, tmp_path: Path) -> None:
    """A canary that takes longer than is tolerated is rolled back, with by how much, before its hit rate could say anything."""
    settings = settings_of(bootstrap, tmp_path, tolerated_later_ms=0, least_events=1_000_000)
    slow = variant(tmp_path / "1", "v1", 1)  # a transformer, beside a decayed mean

    async def scenario() -> None:
        async with loaded(settings) as (worker, load), httpx.AsyncClient(base_url=worker.url) as client:
            await tell(settings, "candidate", msgspec.structs.replace(slow, state="canary", share=0.5))
            await until(lambda: _true(worker.lifecycle.lineup().candidate is not None))
            history = worker.lifecycle.swapper.history

            async def ended() -> bool:
                await load.events(40)
                await load.folded(worker)
                return len(history) > 1

            await until(ended)
            last = history[1].release
            assert last is not None
            assert (last.version, last.state) == ("v1", "rolled-back")
            assert last.why.startswith("slower: ")
            assert last.metrics["online_later_ms"] > 0
            await everybody_is_of(worker, "baseline-3")
            told = (await client.get("/metrics")).text
            assert 'currents_profile_age_seconds_count{version="v1"}' in told
            assert 'currents_profile_age_seconds_count{version="baseline-3"}' in told

    asyncio.run(scenario())


def test_broken_candidate_is_over(bootstrap: str, tmp_path: Path) -> None:
    """A candidate on trial that a worker can never load is refused by one record with the reason, and the next one may be tried."""
    settings = settings_of(bootstrap, tmp_path)
    variant(tmp_path / "1", "v1", 1)
    nan_weights(ONNX)(tmp_path / "1")
    broken = msgspec.structs.replace(rewrite(tmp_path / "1"), state="canary", share=0.5)

    async def scenario() -> None:
        async with loaded(settings) as (worker, load):
            await load.events(50, 20)
            await tell(settings, "candidate", broken)
            history = worker.lifecycle.swapper.history
            await until(lambda: _true(len(history) == 2))
            last = history[1]
            assert last.release is not None
            assert (last.channel, last.release.state, last.release.version) == ("candidate", "refused", "v1")
            assert worker.url in last.release.by
            assert last.release.why
            assert candidate(history) is None
            assert worker.lifecycle.lineup().candidate is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("other", "alarm"),
    [
        ({"item": "never-heard-of"}, "unknown-items of shop"),
        ({"behavior": "teleported"}, "dead-letters of shop"),
        ({"behavior": "buy"}, "behaviors of shop"),
        ({"value": "7", "item": "an-id-of-another-form"}, "item-ids of shop, fields of shop"),
    ],
)
def test_drift(bootstrap: str, tmp_path: Path, other: dict[str, str], alarm: str) -> None:
    """Unknown items, records that no mapping fits, behaviors that were rare: each raises its alarm, in Prometheus and /healthz."""
    settings = settings_of(bootstrap, tmp_path)
    settings = settings.model_copy(update={"drift": settings.drift.model_copy(update={"window_s": 2.5, "least": 50, "alpha": 1e-3})})
    wanted = alarm.split(", ")

    async def scenario() -> None:
        async with loaded(settings) as (worker, load), httpx.AsyncClient(base_url=worker.url) as client:
            for _ in range(60):
                await load.events(20)
                await asyncio.sleep(0.1)
            await load.folded(worker)
            before = (await client.get("/healthz")).json()["drift"]
            assert [a for a in before if a.endswith(" of shop")] == []  # of the inputs; the vectors of such young users do move
            raised = asyncio.Event()
            for _ in range(100):
                await load.events(20, USERS, False, **other)
                await asyncio.sleep(0.1)
                if all(worker.metrics.value("currents_drift_alarm", what=a.split(" of ")[0], of="shop") for a in wanted):
                    raised.set()
                    break
            assert raised.is_set()
            assert set(wanted) <= set((await client.get("/healthz")).json()["drift"])

    asyncio.run(scenario())


def test_newest_first(bootstrap: str, tmp_path: Path) -> None:
    """After a change users are encoded again in the order of their newest events, the newest first, none twice."""
    settings = settings_of(bootstrap, tmp_path)
    v1 = variant(tmp_path / "1", "v1", 1)

    async def scenario() -> list[Any]:
        async with loaded(settings) as (worker, load):
            await load.events(400)
            await load.folded(worker)
            await tell(settings, "serving", v1)
            await everybody_is_of(worker, "v1")
            await until(lambda: _true(worker.metrics.value("currents_released_profiles_total") == USERS))  # counted once acknowledged
            assert worker.reencoder.pending() == 0
        return await read_topic(settings.kafka, settings.topic("profiles"), PARTITIONS)

    rows = [(r.partition, decode_profile(r.value)) for r in asyncio.run(scenario())]
    again = [(partition, p.last_event_at) for partition, p in rows if p.encoder_version == "v1"]
    assert len(again) == USERS
    for partition in range(PARTITIONS):
        times = [at for p, at in again if p == partition]
        assert times == sorted(times, reverse=True)


def test_who_is_read(bootstrap: str, tmp_path: Path) -> None:
    """With no rate for the others, only who acts or is read goes over; a read answers with what is there, and the next one with the new vector."""
    settings = settings_of(bootstrap, tmp_path, reencode_per_s=0)
    v1 = variant(tmp_path / "1", "v1", 1)

    async def scenario() -> None:
        async with loaded(settings) as (worker, load), httpx.AsyncClient(base_url=worker.url) as client:
            await load.events(300)
            await load.folded(worker)
            await tell(settings, "serving", v1)
            await until(lambda: _true(worker.encoder.version == "v1"))

            async def version() -> str:
                return str((await client.get("/v1/profiles/u7")).json()["encoder_version"])

            assert await version() == "baseline-3"

            async def is_over() -> bool:
                return await version() == "v1"

            await until(is_over)
            assert {u for u, p in stored(worker).items() if p.encoder_version == "v1"} == {"u7"}

    asyncio.run(scenario())
