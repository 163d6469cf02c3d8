"""Any worker answers for any user, and says when to ask again."""

import random
import time
from collections.abc import Callable
from urllib.parse import quote

import httpx
import msgpack
import orjson
import pytest

from schemas.profiles import unpack_vector
from streams.serve.api import FORWARDED
from testkit.cluster import Cluster, WorkerProcess, wait_for
from testkit.load import plain

pytestmark = pytest.mark.kafka
ODD = ["a b", "a/b", "a?b=c", "a#b", "ä€😀", "100%", "a%2Fb", "a+b", "u:rank", "a&vector=true", "a\\b", "x:batchGet", "/", "//", "a;b", '"']
USERS = [f"u{n}" for n in range(40)]


def filled(cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster whose log has some events of each user."""
    c, r, now = cluster(), random.Random(5), time.time_ns() // 1_000_000
    c.items(50)
    rows = [orjson.loads(plain(r, f"{user}-{n}", now - n, 1)) | {"account": user} for user in [*USERS, *ODD] for n in range(5)]
    c.send(f"{c.prefix}.in.shop", map(orjson.dumps, rows))
    return c


def two_workers(c: Cluster) -> tuple[WorkerProcess, WorkerProcess]:
    a, b = c.worker("a").ready(), c.worker("b").ready()
    wait_for("both workers to have tablets", lambda: all(c.owners().values()))
    c.drain()
    return a, b


def path(user: str) -> str:
    return f"/v1/profiles/{quote(user, safe='')}"


def test_any_worker_answers(cluster: Callable[..., Cluster]) -> None:
    """Both workers give the same profile of every user, in JSON and in MessagePack, one by one, in batches, and in rank."""
    c = filled(cluster)
    a, b = two_workers(c)
    binary = {"accept": "application/msgpack"}
    for user in USERS + ODD:
        answers = [w.get(path(user), params={"vector": "true"}) for w in (a, b)]
        assert [r.status_code for r in answers] == [200, 200], user
        x, y = (r.json() | {"age_ms": 0} for r in answers)
        assert x == y
        assert x["user_id"] == user
        packed = [w.get(path(user), params={"vector": "true"}, headers=binary) for w in (a, b)]
        assert {r.headers["content-type"] for r in packed} == {"application/msgpack"}
        for row in (msgpack.unpackb(r.content) for r in packed):
            assert unpack_vector(row["vector"]).tolist() == x["vector"]
            assert row["interests"] == x["interests"]
        ranks = [w.post(path(user) + ":rank", {"items": ["shop:i1", "shop:i2", "shop:none"]}) for w in (a, b)]
        assert ranks[0].json() == ranks[1].json()
        assert ranks[0].json()["unknown"] == ["shop:none"]
    wanted = {"user_ids": [*USERS, "nobody", *ODD], "vector": True}
    for w in (a, b):
        body = w.post("/v1/profiles:batchGet", wanted).json()
        assert [row["user_id"] for row in body["profiles"]] == USERS + ODD
        assert body["unknown"] == ["nobody"]
        rows = msgpack.unpackb(w.post("/v1/profiles:batchGet", wanted, headers=binary).content)["profiles"]
        assert [unpack_vector(r["vector"]).tolist() for r in rows] == [r["vector"] for r in body["profiles"]]
        assert w.get("/v1/profiles/nobody").json()["error"] == "unknown user"
        assert w.get("/v1/profiles/nobody").status_code == 404
        assert w.post("/v1/profiles:batchGet", {"user_idz": []}).status_code == 422
        assert w.post("/v1/profiles:batchGet", {"user_ids": ["u1"] * 1001}).status_code == 422
        assert w.post("/v1/profiles:batchGet", {"user_ids": ["u" * 5_000_000]}).status_code == 413


def test_owner_is_away(cluster: Callable[..., Cluster]) -> None:
    """While the owner of a tablet stands still the other worker says 503 with Retry-After for its users, and soon answers for them itself."""
    c = filled(cluster)
    a, b = two_workers(c)
    of_a = [u for u in USERS if b.get(path(u), headers={FORWARDED: "1"}).status_code == 503]
    assert 0 < len(of_a) < len(USERS)
    a.pause()
    assert_not_yet(b.get(path(of_a[0])))
    wait_for("the other worker to answer for all", lambda: b.post("/v1/profiles:batchGet", {"user_ids": USERS}).status_code == 200)
    assert b.owned() == {0, 1, 2, 3}
    a.go_on()
    wait_for("both workers to have tablets again", lambda: all(c.owners().values()))
    for w in (a, b):
        assert {w.get(path(u)).status_code for u in USERS} == {200}


def test_owner_is_gone(cluster: Callable[..., Cluster]) -> None:
    """Once a tablet's owner is gone the other worker says 503 with Retry-After for its users, and soon answers for them itself."""
    c = filled(cluster)
    a, b = two_workers(c)
    of_a = [u for u in USERS if b.get(path(u), headers={FORWARDED: "1"}).status_code == 503]
    assert 0 < len(of_a) < len(USERS)
    a.kill()
    assert_not_yet(b.get(path(of_a[0])))
    assert_not_yet(b.post("/v1/profiles:batchGet", {"user_ids": USERS}))
    wait_for("the other worker to answer for all", lambda: b.post("/v1/profiles:batchGet", {"user_ids": USERS}).status_code == 200)
    assert {b.get(path(u)).status_code for u in USERS} == {200}
    assert b.owned() == {0, 1, 2, 3}


def test_restoring(cluster: Callable[..., Cluster]) -> None:
    """From its first breath on a worker says 503 with Retry-After; once its tablets are restored it answers."""
    c = filled(cluster)
    a = c.worker("a").ready()
    c.drain()
    assert a.terminate() == 0
    b = c.worker("b")
    wait_for("the endpoint to listen", lambda: listens(b))
    assert_not_yet(b.get(path("u1")))
    assert_not_yet(b.get("/readyz"))
    assert_not_yet(b.post("/v1/profiles:batchGet", {"user_ids": USERS}))
    assert b.get("/healthz").status_code == 200
    b.ready()
    assert b.get(path("u1")).status_code == 200


def listens(worker: WorkerProcess) -> bool:
    try:
        return bool(worker.get("/healthz"))
    except httpx.TransportError:
        return False


def assert_not_yet(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]
