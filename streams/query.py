"""The query endpoint beside the worker: profiles, rank, health, metrics. Any worker answers for any user: the tablet's owner is asked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
import msgpack
import numpy as np
import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from encoder.features import UNKNOWN
from schemas.items import Item, clip_categories, content
from schemas.profiles import Profile, decode_profile, unpack_vector
from streams.sending import partition_of
from streams.storage import StorageError
from streams.tablets import now_ms
from streams.views import BatchGet, BatchProfiles, ProfileView, Rank, Ranking, view

if TYPE_CHECKING:
    from streams.worker import Worker

MSGPACK = "application/msgpack"
FORWARDED = "x-currents-forwarded"
RETRY_AFTER_S = "1"


class Problem(Exception):
    """An answer that is not 200, as JSON."""

    def __init__(self, status: int, error: str, **more: Any) -> None:
        super().__init__(error)
        self.status, self.body = status, {"error": error, **more}


def not_yet(why: str) -> Problem:
    """503 with Retry-After."""
    return Problem(503, why)


class Tables:
    """Where a user's profile is: here, or at another worker."""

    def __init__(self, worker: "Worker", client: httpx.AsyncClient) -> None:
        self._worker, self._client = worker, client
        self._topic = worker.settings.topic("events")
        self._partitions = worker.settings.worker.partitions

    def local(self, user_id: str) -> Profile | None:
        """A profile of a tablet that is here and restored."""
        user = encode_id(user_id)
        tablet = self._worker.tablets.get(partition_of(user, self._partitions))
        if tablet is None:
            raise not_yet("this worker does not have the user's tablet")
        if not tablet.restored.is_set():
            raise not_yet("the user's tablet is being restored")
        found = tablet.profile(user)
        return decode_profile(found) if found else None

    def owner(self, user_id: str, request: Request) -> str | None:
        """URL of the worker to ask; None when it is this one."""
        partition = partition_of(encode_id(user_id), self._partitions)
        if self._worker.tablets.get(partition) is not None or FORWARDED in request.headers:
            return None
        url = self._worker.app.owners(self._topic).get(partition)
        if url is None or url == self._worker.url:
            raise not_yet("no worker has the user's tablet at the moment")
        return url

    async def ask(self, url: str, request: Request, path: str, body: bytes, accept: str | None = None) -> httpx.Response:
        """The same request, to another worker."""
        headers = {"accept": accept or request.headers.get("accept", "*/*"), FORWARDED: "1"}
        if body:
            headers["content-type"] = "application/json"
        try:
            return await self._client.request(request.method, url + path, params=request.query_params, content=body, headers=headers)
        except httpx.HTTPError:
            raise not_yet("the worker that has the user's tablet does not answer") from None


def encode_id(user_id: str) -> bytes:
    """A user id as a key."""
    try:
        return user_id.encode()
    except UnicodeEncodeError:
        raise Problem(422, "user_id: not Unicode text") from None


def path_of(request: Request) -> str:
    """The path as it was asked for: ids keep their escapes."""
    raw: bytes = request.scope["raw_path"]
    return raw.decode("ascii")


def answer(request: Request, body: Any, status: int = 200) -> Response:
    """JSON, or MessagePack if Accept prefers it."""
    if binary(request):
        return Response(msgpack.packb(body), status, media_type=MSGPACK)
    return Response(orjson.dumps(body), status, media_type="application/json")


def binary(request: Request) -> bool:
    """Whether the client asked for MessagePack."""
    return "msgpack" in request.headers.get("accept", "")


def make_api(worker: "Worker") -> FastAPI:
    """The FastAPI application of a worker; its page is at /docs."""
    client = httpx.AsyncClient(timeout=5.0)
    tables = Tables(worker, client)
    timed = worker.metrics.query_seconds.labels
    maximum = worker.settings.query.max_batch

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    api = FastAPI(title="Currents", description="Current interests of users: one vector and one readable portrait each.", lifespan=lifespan)

    @api.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return JSONResponse(error.body, error.status, {"Retry-After": RETRY_AFTER_S} if error.status == 503 else None)

    @api.exception_handler(StorageError)
    async def storage(_: Request, error: StorageError) -> JSONResponse:
        worker.fail(error)
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": RETRY_AFTER_S})

    @api.get("/v1/profiles/{user_id:path}", response_model=ProfileView, responses={404: {}, 503: {}})
    async def get_profile(request: Request, user_id: str, vector: bool = Query(False, description="Add the interest vector")) -> Response:
        """The profile of a user."""
        with timed("get").time():
            if (url := tables.owner(user_id, request)) is not None:
                return passed_on(await tables.ask(url, request, path_of(request), b""))
            profile = tables.local(user_id)
            if profile is None:
                raise Problem(404, "unknown user", user_id=user_id)
            return answer(request, view(profile, now_ms(), vector, binary(request)))

    @api.post("/v1/profiles:batchGet", response_model=BatchProfiles, responses={503: {}})
    async def batch_get(request: Request, body: BatchGet) -> Response:
        """Profiles of many users; ids without a profile are listed apart."""
        with timed("batchGet").time():
            limit("user_ids", len(body.user_ids), maximum)
            owners: dict[str | None, list[str]] = {}
            for user_id in dict.fromkeys(body.user_ids):
                owners.setdefault(tables.owner(user_id, request), []).append(user_id)
            found: dict[str, Any] = {}
            for user_id in owners.pop(None, []):
                if (profile := tables.local(user_id)) is not None:
                    found[user_id] = view(profile, now_ms(), body.vector, binary(request))
            parts = [orjson.dumps({"user_ids": ids, "vector": body.vector}) for ids in owners.values()]
            asked = (tables.ask(str(url), request, path_of(request), part) for url, part in zip(owners, parts, strict=True))
            for response in await asyncio.gather(*asked):
                if response.status_code != 200:
                    raise not_yet("a worker that has some of the tablets is not ready")
                rows = msgpack.unpackb(response.content) if MSGPACK in response.headers["content-type"] else orjson.loads(response.content)
                found |= {row["user_id"]: row for row in rows["profiles"]}
            ids = dict.fromkeys(body.user_ids)
            return answer(request, {"profiles": [found[u] for u in ids if u in found], "unknown": [u for u in ids if u not in found]})

    @api.post("/v1/profiles/{user_id:path}:rank", response_model=Ranking, responses={404: {}, 409: {}, 503: {}})
    async def rank(request: Request, user_id: str, body: Rank) -> Response:
        """Items by their dot product with the user's interest vector, best first. Content may be of items never seen before."""
        with timed("rank").time():
            limit("items and contents", len(body.items) + len(body.contents), maximum)
            if (url := tables.owner(user_id, request)) is not None:
                return passed_on(await tables.ask(url, request, path_of(request), await request.body()))
            profile = tables.local(user_id)
            if profile is None:
                raise Problem(404, "unknown user", user_id=user_id)
            encoder = worker.encoder
            if profile.space_id != encoder.space_id:
                raise Problem(409, "the profile is of another space; it is encoded again with the user's next event", space_id=profile.space_id)
            ranked = await asyncio.get_running_loop().run_in_executor(worker.encoding_pool, ranking, worker, profile, body)
            return answer(request, ranked)

    @api.get("/healthz")
    async def healthz() -> JSONResponse:
        """200 while the process works."""
        failed = worker.failed.done()
        return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    @api.get("/readyz")
    async def readyz() -> JSONResponse:
        """200 once every tablet of this worker is restored."""
        if not worker.ready():
            raise not_yet("tablets are being restored")
        return JSONResponse({"status": "ready", "tablets": sorted(t.partition for t in worker.tablets)})

    @api.get("/metrics")
    async def metrics() -> Response:
        """Prometheus."""
        return Response(generate_latest(worker.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return api


def ranking(worker: "Worker", profile: Profile, body: Rank) -> dict[str, Any]:
    """Scores of known items and of raw content. Runs on the encoding thread."""
    rows = worker.store.index(body.items)
    known = np.flatnonzero(rows != UNKNOWN)
    items = [Item(c.id, c.title, clip_categories(c.categories), c.text) for c in body.contents]
    table = worker.store.table
    vectors = np.concatenate([table.vectors[rows[known]], worker.tower.encode([content(i) for i in items])])
    keys = np.concatenate([table.keys[rows[known]], np.zeros(len(items), np.uint64)])
    scores = worker.encoder.project(vectors, keys) @ unpack_vector(profile.vector)
    names = [*(body.items[i] for i in known), *(i.item for i in items)]
    order = np.argsort(-scores, kind="stable").tolist()
    return {
        "user_id": profile.user_id,
        "space_id": profile.space_id,
        "encoder_version": profile.encoder_version,
        "updated_at": profile.updated_at,
        "ranked": [{"item": names[i], "score": float(scores[i])} for i in order],
        "unknown": [body.items[i] for i in np.flatnonzero(rows == UNKNOWN)],
    }


def limit(field: str, n: int, maximum: int) -> None:
    """Refuse more than the endpoint takes at once."""
    if n > maximum:
        raise Problem(422, f"{field}: {n} at once, want at most {maximum} (query.max_batch)")


def passed_on(response: httpx.Response) -> Response:
    """Another worker's answer as ours."""
    kept = {k: v for k, v in response.headers.items() if k.lower() in ("content-type", "retry-after")}
    return Response(response.content, response.status_code, kept)
