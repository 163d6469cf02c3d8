"""The query endpoint: profiles, rank, health, metrics. The same routes in front of a worker and of a read replica."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Protocol

import httpx
import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from schemas.profiles import decode_profile
from streams.core.clock import now_ms
from streams.core.errors import StorageError
from streams.core.settings import Settings
from streams.monitoring.metrics import Registry
from streams.serve.models import About, BatchGet, BatchProfiles, ProblemView, ProfileView, Rank, Ranking, view
from streams.serve.ranking import Ranker
from streams.serve.responses import PROBLEM, Problem, answer, binary, encode_id, limit, malformed, not_yet, passed_on, rows_of

ABOUT = "Current interests of users: one vector and one readable portrait each."
FORWARDED = "x-currents-forwarded"
TURN = 16  # profiles of a batch that are made before other requests have their turn: about half a millisecond


class Source(Protocol):
    """Where profiles come from: what the routes ask of the process behind them."""

    @property
    def settings(self) -> Settings:
        """Its settings."""
        ...

    @property
    def metrics(self) -> Registry:
        """What it counts."""
        ...

    def elsewhere(self, user: bytes) -> str | None:
        """URL of the process to ask instead; None when it is this one. Raises Problem when nobody has the user."""
        ...

    def stored(self, user: bytes) -> bytes | None:
        """The packed profile of a user. Raises Problem while it cannot be said."""
        ...

    def freshness(self, users: Sequence[bytes]) -> Mapping[str, str]:
        """Headers of an answer about these users."""
        ...

    def ranker(self) -> Ranker:
        """What ranks items. Raises Problem where no items are kept."""
        ...

    def health(self) -> dict[str, Any]:
        """Body of /healthz; `status` is "failed" when the process is about to end."""
        ...

    def ready(self) -> dict[str, Any]:
        """Body of /readyz. Raises Problem while reads are refused."""
        ...

    def fail(self, error: Exception) -> None:
        """What is stored cannot be read: the process ends."""
        ...


class Direct:
    """Answers the request that comes most often, GET of one profile, with the route's own function; FastAPI would cost more than the answer.

    Only where FastAPI could find nothing to convert or to refuse; everything else is for `api`.
    """

    PREFIX = "/v1/profiles/"
    QUERIES: ClassVar = {b"": False, b"vector=false": False, b"vector=true": True}

    def __init__(self, api: FastAPI, get_profile: Callable[[Request, str, bool], Awaitable[Response]]) -> None:
        self.api, self._get_profile = api, get_profile

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One ASGI connection."""
        plain = scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith(self.PREFIX)
        vector = self.QUERIES.get(scope["query_string"]) if plain else None
        if vector is None:
            await self.api(scope, receive, send)
            return
        try:
            response = await self._get_profile(Request(scope), scope["path"].removeprefix(self.PREFIX), vector)
        except Problem as problem:
            response = problem.response()
        await response(scope, receive, send)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that are not 200, as the OpenAPI page shows them."""
    content = {PROBLEM: {"schema": ProblemView.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def make_api(source: Source) -> Direct:
    """The endpoint as an ASGI application; its page is at /docs."""
    client = httpx.AsyncClient(timeout=5.0)
    timed = {route: source.metrics.query_seconds.labels(route) for route in ("get", "batchGet", "rank")}
    maximum = source.settings.query.max_batch

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    api: FastAPI = FastAPIOffline(title="Currents", description=ABOUT, lifespan=lifespan, responses=problems(422, 500))  # its page loads no CDN

    def elsewhere(user: bytes, request: Request) -> str | None:
        return None if FORWARDED in request.headers else source.elsewhere(user)

    async def ask(url: str, request: Request, body: bytes) -> httpx.Response:
        """The same request, to another worker; ids in the path keep their escapes."""
        headers = {"accept": request.headers.get("accept", "*/*"), FORWARDED: "1"}
        if body:
            headers["content-type"] = "application/json"
        path = request.scope["raw_path"].decode("ascii")
        try:
            return await client.request(request.method, url + path, params=request.query_params, content=body, headers=headers)
        except httpx.HTTPError:
            raise not_yet("the worker that has the user's tablet does not answer") from None

    def local(user: bytes) -> bytes:
        profile = source.stored(user)
        if not profile:
            raise Problem(404, "unknown user", source.freshness([user]), user_id=user.decode())
        return profile

    def shown(profile: bytes, vector: bool, packed: bool) -> dict[str, Any]:
        try:
            return view(profile, now_ms(), vector, packed)
        except (ValueError, KeyError, TypeError) as error:
            raise Problem(500, f"the stored profile cannot be read: {error}") from None

    @api.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @api.exception_handler(RequestValidationError)
    async def not_as_documented(_: Request, error: RequestValidationError) -> JSONResponse:
        return malformed(error.errors()).response()

    @api.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}; / lists the routes", error.headers).response()

    @api.exception_handler(StorageError)
    async def storage(_: Request, error: StorageError) -> Response:
        source.fail(error)
        return not_yet(str(error)).response()

    @api.get("/", response_model=About)
    async def about() -> dict[str, Any]:
        """What this is, and where to go on."""
        routes = [f"{method.upper()} {path}" for path, methods in api.openapi()["paths"].items() for method in methods]
        return {"name": "Currents", "about": ABOUT, "docs": "/docs", "openapi": "/openapi.json", "routes": routes}

    @api.get("/v1/profiles/{user_id:path}", response_model=ProfileView, responses=problems(404, 503))
    async def get_profile(request: Request, user_id: str, vector: bool = Query(False, description="Add the interest vector")) -> Response:
        """The profile of a user."""
        with timed["get"].time():
            user = encode_id(user_id)
            if (url := elsewhere(user, request)) is not None:
                return passed_on(await ask(url, request, b""))
            return answer(request, shown(local(user), vector, binary(request)), source.freshness([user]))

    @api.post("/v1/profiles:batchGet", response_model=BatchProfiles, responses=problems(503))
    async def batch_get(request: Request, body: BatchGet) -> Response:
        """Profiles of many users; ids without a profile are listed apart."""
        with timed["batchGet"].time():
            limit("user_ids", len(body.user_ids), maximum)
            ids, packed = dict.fromkeys(body.user_ids), binary(request)
            owners: dict[str | None, list[str]] = {}
            for user_id in ids:
                owners.setdefault(elsewhere(encode_id(user_id), request), []).append(user_id)
            here, found = owners.pop(None, []), dict[str, Any]()
            for n, user_id in enumerate(here):
                if profile := source.stored(user_id.encode()):
                    row = shown(profile, body.vector, packed)
                    found[user_id] = row if packed else orjson.Fragment(orjson.dumps(row))
                if n % TURN == TURN - 1:
                    await asyncio.sleep(0)
            parts = [orjson.dumps({"user_ids": theirs, "vector": body.vector}) for theirs in owners.values()]
            asked = (ask(str(url), request, part) for url, part in zip(owners, parts, strict=True))
            for response in await asyncio.gather(*asked):
                found |= {row["user_id"]: row for row in rows_of(response)}
            rows = {"profiles": [found[u] for u in ids if u in found], "unknown": [u for u in ids if u not in found]}
            return answer(request, rows, source.freshness([u.encode() for u in here]))

    @api.post("/v1/profiles/{user_id:path}:rank", response_model=Ranking, responses=problems(404, 409, 501, 503))
    async def rank(request: Request, user_id: str, body: Rank) -> Response:
        """Items by their dot product with the user's interest vector, best first. Content may be of items never seen before."""
        with timed["rank"].time():
            limit("items and contents", len(body.items) + len(body.contents), maximum)
            user = encode_id(user_id)
            if (url := elsewhere(user, request)) is not None:
                return passed_on(await ask(url, request, await request.body()))
            ranked = await source.ranker().rank(decode_profile(local(user)), body)
            return answer(request, ranked, source.freshness([user]))

    @api.get("/healthz")
    async def healthz() -> JSONResponse:
        """200 while the process works."""
        body = source.health()
        return JSONResponse(body, 503 if body["status"] == "failed" else 200)

    @api.get("/readyz")
    async def readyz() -> JSONResponse:
        """200 while reads are answered."""
        return JSONResponse(source.ready())

    @api.get("/metrics")
    async def metrics() -> Response:
        """Prometheus."""
        return Response(generate_latest(source.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Direct(api, get_profile)
