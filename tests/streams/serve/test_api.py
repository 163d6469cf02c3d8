"""The short way to one profile gives what FastAPI's way gives."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest

from schemas.profiles import encode_profile
from streams.core.settings import Settings
from streams.monitoring.metrics import Registry
from streams.serve.api import make_api
from streams.serve.ranking import Ranker
from streams.serve.responses import Problem, not_yet
from tests.schemas.test_codecs import PROFILE

USERS = ["u1", "a b", "a/b", "ä€😀", "100%", "u:rank", "a&vector=true", "\\", "", "profiles/u1"]


class Shelf:
    """A source of a few profiles: `away` cannot be said yet, `spoiled` is no profile."""

    def __init__(self) -> None:
        self.settings, self.metrics = Settings(platforms=()), Registry()
        self._rows = {u.encode(): encode_profile(msgspec.structs.replace(PROFILE, user_id=u)) for u in USERS} | {b"spoiled": b"\xc1"}

    def elsewhere(self, user: bytes) -> str | None:
        """Everybody is here."""
        return None

    def stored(self, user: bytes) -> bytes | None:
        if user == b"away":
            raise not_yet("later", {"x-more": "1"})
        return self._rows.get(user)

    def freshness(self, users: Sequence[bytes]) -> Mapping[str, str]:
        return {"x-users": str(len(users))}

    def ranker(self) -> Ranker:
        raise Problem(501, "no items")

    def health(self) -> dict[str, Any]:
        return {"status": "ok"}

    def ready(self) -> dict[str, Any]:
        return {"status": "ready"}

    def fail(self, error: Exception) -> None:
        raise AssertionError from error


PATHS = [f"/v1/profiles/{quote(u, safe='')}" for u in [*USERS, "nobody", "away", "spoiled"]]
QUERIES = ["", "?vector=true", "?vector=false", "?vector=1", "?vector=perhaps", "?other=1", "?vector=true&vector=false"]
CASES = [("GET", path + query) for path in PATHS for query in QUERIES]
CASES += [("HEAD", PATHS[0]), ("DELETE", PATHS[0]), ("GET", "/v1/profiles"), ("GET", "/healthz"), ("GET", "/docs"), ("GET", "/")]


@pytest.mark.parametrize("accept", ["*/*", "application/msgpack"])
def test_short_way(accept: str) -> None:
    """Status, headers and body are the same on both ways, whatever is asked."""

    async def both() -> None:
        app = make_api(Shelf())
        clients = [
            httpx.AsyncClient(transport=httpx.ASGITransport(way), base_url="http://here", headers={"accept": accept}) for way in (app, app.api)
        ]
        for method, path in CASES:
            short, long = [await client.request(method, path) for client in clients]
            assert (short.status_code, aged(short), short.headers) == (long.status_code, aged(long), long.headers), (method, path)
        for client in clients:
            await client.aclose()

    asyncio.run(both())


def aged(response: httpx.Response) -> Any:
    """A body without the age of its profile."""
    kind = response.headers.get("content-type", "")
    body = (
        msgspec.msgpack.decode(response.content) if "msgpack" in kind else response.json() if response.content and "json" in kind else response.text
    )
    if isinstance(body, dict):
        body.pop("age_ms", None)
    return body


def problem(status: int, title: str, detail: str, **more: Any) -> dict[str, Any]:
    """RFC 9457, with the member that was there before it."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "error": detail, **more}


PROBLEMS: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/v1/profiles/nobody", None, 404, "unknown user"),
    ("GET", "/v1/profiles/u1?vector=perhaps", None, 422, "vector: "),
    ("GET", "/v2/profiles/u1", None, 404, "GET /v2/profiles/u1: Not Found"),
    ("DELETE", "/v1/profiles/u1", None, 405, "DELETE /v1/profiles/u1: Method Not Allowed"),
    ("POST", "/v1/profiles:batchGet", {"user_ids": "u1"}, 422, "user_ids: "),
    ("POST", "/v1/profiles:batchGet", {"user_ids": ["u1"] * 2000}, 422, "user_ids: 2000 at once"),
    ("POST", "/v1/profiles/u1:rank", {"contents": [{"id": "a"}]}, 422, "contents.0.title: "),
    ("POST", "/v1/profiles/u1:rank", {}, 501, "no items"),
    ("GET", "/v1/profiles/away", None, 503, "later"),
    ("GET", "/v1/profiles/spoiled", None, 500, "the stored profile cannot be read"),
]


async def asked(*requests: tuple[str, str, Any]) -> list[httpx.Response]:
    """Answers to requests."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_api(Shelf())), base_url="http://here") as client:
        return [await client.request(method, path, json=body) for method, path, body in requests]


@pytest.mark.parametrize(("method", "path", "body", "status", "says"), PROBLEMS)
def test_one_shape_of_error(method: str, path: str, body: Any, status: int, says: str) -> None:
    """Whatever is wrong, the answer is problem+json with the same members."""
    [response] = asyncio.run(asked((method, path, body)))
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    row = response.json()
    assert row["detail"].startswith(says)
    assert problem(status, response.reason_phrase, row["detail"]) == {k: row[k] for k in ("type", "title", "status", "detail", "error")}


def test_what_this_is() -> None:
    """`/` says what answers; `/docs` loads nothing from elsewhere, and what it loads is there; bodies and problems are documented."""
    about, page, openapi = asyncio.run(asked(("GET", "/", None), ("GET", "/docs", None), ("GET", "/openapi.json", None)))
    assert "POST /v1/profiles:batchGet" in about.json()["routes"]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    assert not [url for url in loaded if "//" in url]
    assert {r.status_code for r in asyncio.run(asked(*(("GET", url, None) for url in loaded)))} == {200}
    routes, schemas = openapi.json()["paths"], openapi.json()["components"]["schemas"]
    for path, name in (("/v1/profiles:batchGet", "BatchGet"), ("/v1/profiles/{user_id}:rank", "Rank")):
        route = routes[path]["post"]
        assert route["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{name}")
        assert schemas[name]["examples"]
        assert "application/problem+json" in route["responses"]["503"]["content"]


def test_what_is_answered() -> None:
    """A profile with its freshness, 404 with it too, 503 with Retry-After, and a row that is no profile as an error that says so."""

    async def ask() -> list[httpx.Response]:
        app = make_api(Shelf())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return [await client.get(f"/v1/profiles/{u}") for u in ("u1", "nobody", "away", "spoiled")]

    found, unknown, away, spoiled = asyncio.run(ask())
    assert (found.status_code, found.json()["user_id"], found.headers["x-users"]) == (200, "u1", "1")
    wanted = problem(404, "Not Found", "unknown user", user_id="nobody")
    assert (unknown.status_code, unknown.json(), unknown.headers["x-users"]) == (404, wanted, "1")
    assert (away.status_code, away.headers["retry-after"], away.headers["x-more"]) == (503, "1", "1")
    assert spoiled.status_code == 500
    assert "not a profile" in spoiled.json()["error"]
