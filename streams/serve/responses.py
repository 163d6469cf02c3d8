"""What the query endpoint answers with: JSON or MessagePack, or a problem."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import httpx
import msgpack
import orjson
from fastapi import Request, Response
from fastapi.responses import JSONResponse

MSGPACK, PROBLEM = "application/msgpack", "application/problem+json"
RETRY_AFTER_S = "1"


class Problem(Exception):
    """An answer that is not 200, as problem+json (RFC 9457). `error` says the same as `detail`: it is what clients of earlier versions read."""

    def __init__(self, status: int, error: str, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(error)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": error, "error": error, **more}

    def response(self) -> JSONResponse:
        """With Retry-After where to come back may help."""
        later = {"Retry-After": RETRY_AFTER_S} if self.status == 503 else {}
        return JSONResponse(self.body, self.status, later | self.headers, PROBLEM)


def not_yet(why: str, headers: Mapping[str, str] | None = None) -> Problem:
    """503 with Retry-After."""
    return Problem(503, why, headers)


def malformed(errors: Sequence[Any]) -> Problem:
    """422 for a request that is not as documented: names the first field, and has all of them in `errors`, without their values."""
    rows = [{"field": ".".join(str(part) for part in e["loc"][1:]) or str(e["loc"][0]), "why": str(e["msg"])} for e in errors]
    return Problem(422, f"{rows[0]['field']}: {rows[0]['why']}", errors=rows)


def encode_id(user_id: str) -> bytes:
    """A user id as a key."""
    try:
        return user_id.encode()
    except UnicodeEncodeError:
        raise Problem(422, "user_id: not Unicode text") from None


def answer(request: Request, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """JSON, or MessagePack if Accept prefers it."""
    if binary(request):
        return Response(msgpack.packb(body), headers=dict(headers or {}), media_type=MSGPACK)
    return Response(orjson.dumps(body), headers=dict(headers or {}), media_type="application/json")


def binary(request: Request) -> bool:
    """Whether the client asked for MessagePack."""
    return "msgpack" in request.headers.get("accept", "")


def limit(field: str, n: int, maximum: int) -> None:
    """Refuse more than the endpoint takes at once."""
    if n > maximum:
        raise Problem(422, f"{field}: {n} at once, want at most {maximum} (query.max_batch)")


def passed_on(response: httpx.Response) -> Response:
    """Another worker's answer as ours."""
    kept = {k: v for k, v in response.headers.items() if k.lower() in ("content-type", "retry-after", "x-currents-behind")}
    return Response(response.content, response.status_code, kept)


def rows_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The profiles of another worker's batchGet. Raises Problem."""
    if response.status_code != 200:
        raise not_yet("a worker that has some of the tablets is not ready")
    body = msgpack.unpackb(response.content) if MSGPACK in response.headers["content-type"] else orjson.loads(response.content)
    rows: list[dict[str, Any]] = body["profiles"]
    return rows
