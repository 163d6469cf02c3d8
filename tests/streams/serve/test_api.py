"""The short way to one profile gives what FastAPI's way gives."""

import asyncio
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
CASES += [("HEAD", PATHS[0]), ("DELETE", PATHS[0]), ("GET", "/v1/profiles"), ("GET", "/healthz"), ("GET", "/docs")]


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


def test_what_is_answered() -> None:
    """A profile with its freshness, 404 with it too, 503 with Retry-After, and a row that is no profile as an error that says so."""

    async def ask() -> list[httpx.Response]:
        app = make_api(Shelf())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return [await client.get(f"/v1/profiles/{u}") for u in ("u1", "nobody", "away", "spoiled")]

    found, unknown, away, spoiled = asyncio.run(ask())
    assert (found.status_code, found.json()["user_id"], found.headers["x-users"]) == (200, "u1", "1")
    assert (unknown.status_code, unknown.json(), unknown.headers["x-users"]) == (404, {"error": "unknown user", "user_id": "nobody"}, "1")
    assert (away.status_code, away.headers["retry-after"], away.headers["x-more"]) == (503, "1", "1")
    assert spoiled.status_code == 500
    assert "not a profile" in spoiled.json()["error"]
