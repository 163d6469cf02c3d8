"""A read replica beside a worker, and on its own."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import orjson
import pytest
from aiokafka import AIOKafkaProducer

from encoder.towers import load_tower
from schemas.profiles import Profile, encode_profile
from schemas.releases import Release
from streams.core.clock import now_ms
from streams.core.settings import Settings
from streams.demo.embedded_broker import embedded
from streams.processes.replica import Replica
from streams.processes.replica import running as replicating
from streams.processes.worker import running as working
from streams.releases.release_log import announce
from streams.state.followers import BEHIND
from streams.state.tablet import Tablet
from streams.state.tablets import STALE_MS
from streams.transport.sender import partition_of
from streams.transport.topics import asking, create
from testkit import live
from testkit.apache import free_port
from testkit.bundles import variant
from testkit.live import PARTITIONS, until
from tests.schemas.test_codecs import PROFILE

pytestmark = pytest.mark.broker
ODD = ["a b", "a/b", "ä€😀", "100%", "u:rank", "x:batchGet", "/"]


def settings_of(bootstrap: str, folder: Path, **serve: Any) -> Settings:
    """Settings of a worker and of a replica."""
    return live.settings_of(
        bootstrap,
        folder,
        query={"port": 0, "max_body_bytes": 100_000},
        serve={"port": 0, "data_dir": folder / "replica", "cache_mb": 8, **serve},
    )


async def publish(settings: Settings, users: dict[str, int | None]) -> None:
    """Rows of the profile changelog: users and how many events their profile says; None erases."""
    await published(settings, {u: None if n is None else msgspec.structs.replace(PROFILE, user_id=u, events=n) for u, n in users.items()})


async def published(settings: Settings, profiles: Mapping[str, Profile | None]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    await producer.start()
    try:
        for user, profile in profiles.items():
            row = None if profile is None else encode_profile(profile)
            await producer.send_and_wait(settings.topic("profiles"), row, user.encode(), partition_of(user.encode(), PARTITIONS))
    finally:
        await producer.stop()


def ask(settings: Settings, scenario: Callable[[Replica, httpx.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scenario with a replica that has caught up, and a client of it."""

    async def run() -> Any:
        async with replicating(settings) as replica, httpx.AsyncClient(base_url=replica.url, timeout=20) as client:
            await until(lambda: is_ready(client))
            return await scenario(replica, client)

    return asyncio.run(run())


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


def path(user: str) -> str:
    return f"/v1/profiles/{quote(user, safe='')}"


async def events_of(client: httpx.AsyncClient, users: list[str]) -> dict[str, int]:
    rows = (await client.post("/v1/profiles:batchGet", json={"user_ids": users})).json()["profiles"]
    return {row["user_id"]: row["events"] for row in rows}


REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    *(("GET", path(user), {"params": {"vector": v}}) for user in ["u1", "u2", *ODD, "nobody"] for v in ("true", "false")),
    ("GET", path("u1"), {"headers": {"accept": "application/msgpack"}, "params": {"vector": "true"}}),
    ("GET", path("u1"), {"params": {"vector": "perhaps"}}),
    ("POST", "/v1/profiles:batchGet", {"json": {"user_ids": ["u1", "nobody", "u2", "u1", *ODD], "vector": True}}),
    ("POST", "/v1/profiles:batchGet", {"json": {"user_ids": [*ODD, "u3"]}, "headers": {"accept": "application/msgpack"}}),
    ("POST", "/v1/profiles:batchGet", {"json": {"user_ids": []}}),
    ("POST", "/v1/profiles:batchGet", {"json": {"user_idz": ["u1"]}}),
    ("POST", "/v1/profiles:batchGet", {"json": {"user_ids": ["u1"] * 1001}}),
    ("POST", "/v1/profiles:batchGet", {"json": {"user_ids": ["u" * 200_000]}}),
    ("POST", "/v1/profiles:batchGet", {"content": b"{"}),
    ("POST", path("u1") + ":rank", {"json": {"items": ["shop:i1", "shop:i2", "shop:none"], "contents": [{"id": "new", "title": "Coffee cup"}]}}),
    ("POST", path("nobody") + ":rank", {"json": {"items": ["shop:i1"]}}),
    ("POST", path("u1") + ":rank", {"json": {"items": 1}}),
    ("GET", "/v2/profiles/u1", {}),
    ("DELETE", path("u1"), {}),
]


def test_answers_like_the_worker(bootstrap: str, tmp_path: Path) -> None:
    """Every answer of a replica is the worker's, mistakes too; only the age differs, and the header that says how far behind it is."""
    settings = settings_of(bootstrap, tmp_path, items=True)
    users = ["u1", "u2", "u3", *ODD]

    async def scenario() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
        await producer.start()
        for n in range(4):
            await producer.send(settings.platforms[0].items_topic, orjson.dumps({"id": f"i{n}", "title": f"Coffee thing {n}", "categories": ["K"]}))
        for user in users:
            row = {"account": user, "item": f"i{len(user) % 4}", "behavior": "view", "time": now_ms() - 1000}
            await producer.send(settings.platforms[0].topic, orjson.dumps(row))
        await producer.stop()
        async with working(settings) as worker, replicating(settings) as replica, httpx.AsyncClient(timeout=30) as client:

            async def settled() -> bool:
                both = [await client.post(f"{url}/v1/profiles:batchGet", json={"user_ids": users}) for url in (worker.url, replica.url)]
                rows = [{r["user_id"]: r["updated_at"] for r in b.json().get("profiles", ())} for b in both]
                return len(rows[0]) == len(users) and rows[0] == rows[1] and (await client.get(f"{replica.url}/readyz")).status_code == 200

            await until(settled)
            for method, where, more in REQUESTS:
                theirs, ours = [await client.request(method, url + where, **more) for url in (worker.url, replica.url)]
                assert ours.status_code == theirs.status_code, where
                assert ours.headers["content-type"] == theirs.headers["content-type"]
                assert timeless(ours) == timeless(theirs), where
                assert (BEHIND in ours.headers) == (where.startswith("/v1/profiles") and ours.status_code in (200, 404)), where
                assert BEHIND not in theirs.headers

    asyncio.run(scenario())


def test_ranks_by_what_is_served(bootstrap: str, tmp_path: Path) -> None:
    """A replica that keeps items goes over to a release, keeps it when the next is refused, and goes back, and ranks as the worker does."""
    settings = settings_of(bootstrap, tmp_path, items=True)
    releases, users = settings.topic("releases"), [f"u{n}" for n in range(4)]
    v1 = variant(tmp_path / "v1", "v1", 1)
    broken = msgspec.structs.replace(v1, version="bad", digest="0" * 64, space_id="space-bad")
    day_0 = Release("baseline-3", load_tower("static").space_id, "", "", "rolled-back", 1.0, "v1", 1, "test", "")
    items = {"items": [f"shop:i{n}" for n in range(10)]}

    async def scenario() -> None:
        await live.items(settings)
        await live.events(settings, users, "a")
        async with working(settings) as worker, replicating(settings) as replica, httpx.AsyncClient(timeout=30) as client:

            async def alike(version: str) -> bool:
                for user in users:
                    both = [await client.post(f"{url}{path(user)}:rank", json=items) for url in (worker.url, replica.url)]
                    if [b.status_code for b in both] != [200, 200] or {b.json()["encoder_version"] for b in both} != {version}:
                        return False
                    if both[0].json()["updated_at"] != both[1].json()["updated_at"]:
                        return False
                    rows = [{r["item"]: r["score"] for r in b.json()["ranked"]} for b in both]
                    assert len(rows[0]) == 10
                    assert rows[1] == pytest.approx(rows[0], abs=1e-5)
                return True

            await until(lambda: alike("baseline-3"))
            await announce(settings.kafka, releases, "serving", v1)
            await until(lambda: alike("v1"))
            await announce(settings.kafka, releases, "serving", broken)

            async def refused() -> bool:
                return "sha256" in (await client.get(f"{replica.url}/healthz")).json()["refused"].get("bad", "")

            await until(refused)
            assert await alike("v1")
            await announce(settings.kafka, releases, "serving", day_0)
            await until(lambda: alike("baseline-3"))
            encoders = (await client.get(f"{replica.url}/healthz")).json()["encoders"]
            assert encoders == {"serving": "baseline-3", "candidate": None, "share": 0.0}

    asyncio.run(scenario())


def test_release_that_is_not_there(bootstrap: str, tmp_path: Path) -> None:
    """While a served release cannot be had, its profiles are read and not ranked, with 503 and the reason; profiles of a foreign space are 409."""
    settings = settings_of(bootstrap, tmp_path, items=True)
    gone = msgspec.structs.replace(variant(tmp_path / "v1", "v1", 1), bundle=str(tmp_path / "nowhere"))
    rows = {user: msgspec.structs.replace(PROFILE, user_id=user, space_id=space) for user, space in (("u1", "space-v1"), ("u2", "foreign"))}

    async def scenario(replica: Replica, client: httpx.AsyncClient) -> None:
        assert (await client.get(path("u1"))).status_code == 200
        answer = await client.post(path("u1") + ":rank", json={"items": []})
        assert (answer.status_code, "release v1 is not here" in answer.json()["error"]) == (503, True)
        assert (await client.post(path("u2") + ":rank", json={"items": []})).status_code == 409

    asyncio.run(announce(settings.kafka, settings.topic("releases"), "serving", gone))
    asyncio.run(published(settings, rows))
    ask(settings, scenario)


def timeless(response: httpx.Response) -> Any:
    packed = response.headers["content-type"] == "application/msgpack"
    body = msgspec.msgpack.decode(response.content) if packed else response.json()
    for row in [body, *body.get("profiles", ())] if isinstance(body, dict) else ():
        row.pop("age_ms", None)
    return body


def test_follows(bootstrap: str, tmp_path: Path) -> None:
    """New profiles and erasures show within moments, and health, metrics and the header say that nothing is missing."""
    settings = settings_of(bootstrap, tmp_path)
    asyncio.run(publish(settings, {f"u{n}": 1 for n in range(50)}))

    async def scenario(replica: Replica, client: httpx.AsyncClient) -> None:
        assert await events_of(client, [f"u{n}" for n in range(60)]) == {f"u{n}": 1 for n in range(50)}
        await publish(settings, {"u1": 2, "u2": None, "u55": 1})
        await until(lambda: is_now(client, {"u1": 2, "u55": 1}, gone=["u2"]))
        assert (await client.get(path("u2"))).status_code == 404
        behind = (await client.get("/healthz")).json()
        assert (behind["status"], behind["behind"]["records"]) == ("ok", 0)
        assert 0 <= behind["behind"]["seconds"] < settings.serve.max_behind_s
        assert (await client.get(path("u1"))).headers[BEHIND].startswith("records=0, seconds=")
        figures = (await client.get("/metrics")).text
        assert "currents_behind_records 0.0" in figures
        assert "currents_followed_rows_total 53.0" in figures
        assert (await client.post(path("u1") + ":rank", json={"items": []})).status_code == 501

    ask(settings, scenario)


async def is_now(client: httpx.AsyncClient, there: dict[str, int], gone: list[str]) -> bool:
    return await events_of(client, [*there, *gone]) == there


def test_goes_on_where_it_was(bootstrap: str, tmp_path: Path) -> None:
    """A replica that starts again reads only what came meanwhile, erasures too; one that was away for too long reads everything."""
    settings = settings_of(bootstrap, tmp_path)
    asyncio.run(publish(settings, {f"u{n}": 1 for n in range(40)}))

    async def rows(replica: Replica, client: httpx.AsyncClient) -> tuple[float, dict[str, int]]:
        return replica.metrics.value("currents_followed_rows_total"), await events_of(client, [f"u{n}" for n in range(50)])

    assert ask(settings, rows) == (40, {f"u{n}": 1 for n in range(40)})
    asyncio.run(publish(settings, {"u3": None, "u4": 2, "u45": 1}))
    now = {f"u{n}": 1 for n in range(40) if n != 3} | {"u4": 2, "u45": 1}
    assert ask(settings, rows) == (3, now)
    assert ask(settings, rows) == (0, now)
    for p in range(PARTITIONS):
        tablet = Tablet(p, settings.serve.data_dir / f"tablet-{p}")
        tablet.write(profiles=[(b"erased-long-ago", b"x")], offsets={settings.topic("profiles"): 0}, now_ms=now_ms() - STALE_MS - 1000)
        tablet.close()
    assert ask(settings, rows) == (43, now)


def test_changelog_made_anew(bootstrap: str, tmp_path: Path) -> None:
    """What was read from a topic that was deleted since is not shown beside what the new one holds."""
    settings = settings_of(bootstrap, tmp_path)
    asyncio.run(publish(settings, {"old": 1, "both": 1}))
    assert ask(settings, lambda _, client: events_of(client, ["old", "both"])) == {"old": 1, "both": 1}
    with asking(settings.kafka) as client:
        client.delete_topics([settings.topic("profiles")])
        create(client, settings)
    asyncio.run(publish(settings, {"both": 2, "new": 1}))
    assert ask(settings, lambda _, client: events_of(client, ["old", "both", "new"])) == {"both": 2, "new": 1}


def test_too_far_behind(tmp_path: Path) -> None:
    """Once the brokers are away for longer than the bound, reads are refused with 503, and the process says how far behind it is."""

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            with embedded() as address:
                settings = settings_of(address, tmp_path, max_behind_s=2.0)
                await publish(settings, {"u1": 1})
                replica = await stack.enter_async_context(replicating(settings))
                client = await stack.enter_async_context(httpx.AsyncClient(base_url=replica.url, timeout=20))

                async def answered() -> bool:
                    return (await client.get(path("u1"))).status_code == 200

                await until(answered)  # a busy machine is behind now and then
            for method, where, more in (
                ("GET", path("u1"), {}),
                ("GET", path("nobody"), {}),
                ("POST", "/v1/profiles:batchGet", {"json": {"user_ids": ["u1"]}}),
                ("GET", "/readyz", {}),
            ):

                async def refused(method: str = method, where: str = where, more: Any = more) -> httpx.Response | None:
                    response = await client.request(method, where, **more)
                    return response if response.status_code == 503 else None

                response = await until(refused)
                assert "too far behind" in response.json()["error"]
                assert int(response.headers["retry-after"]) >= 1
                assert float(response.headers[BEHIND].split("seconds=")[1]) > 2
            health = await client.get("/healthz")
            assert (health.status_code, health.json()["status"]) == (200, "behind")
            assert health.json()["behind"]["seconds"] > 2

    asyncio.run(scenario())


def test_process(bootstrap: str, tmp_path: Path) -> None:
    """`currents serve` ends with status 0 on SIGTERM; what it cannot start with is one clear line and status 1."""
    settings = settings_of(bootstrap, tmp_path)
    asyncio.run(publish(settings, {"u1": 1}))
    port = free_port()
    own = {
        "CURRENTS_KAFKA__BOOTSTRAP": bootstrap,
        "CURRENTS_WORKER__PREFIX": settings.worker.prefix,
        "CURRENTS_SERVE__PORT": str(port),
        "CURRENTS_SERVE__DATA_DIR": str(settings.serve.data_dir),
    }
    with start(own) as process:
        asyncio.run(answers(f"http://127.0.0.1:{port}"))
        assert "serve.data_dir" in refused(own)
        assert f"serve.port = {port}" in refused(own | {"CURRENTS_SERVE__DATA_DIR": str(tmp_path / "other")})
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in text) == (0, False), text
    assert "none.profiles is missing" in refused(own | {"CURRENTS_WORKER__PREFIX": "none"})


def start(environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "streams.commands.main", "serve"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment})


def refused(environment: dict[str, str]) -> str:
    """The one line of a replica that does not start."""
    with start(environment) as process:
        text, _ = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in text) == (1, False), text
    (line,) = (line for line in text.splitlines() if line.startswith("currents:"))
    return line


async def answers(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:

        async def there() -> bool:
            try:
                return (await client.get(path("u1"))).status_code == 200
            except httpx.TransportError:
                return False

        await until(there)
