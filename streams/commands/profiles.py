"""The query endpoint from the command line, and how profiles look in a terminal."""

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import orjson
import stamina
from rich.console import RenderableType

from schemas.profiles import Profile, unpack_vector
from streams.core.settings import Settings
from streams.demo.portrait_panel import portrait


class QueryError(RuntimeError):
    """The endpoint's answer, or that there is none: says what to do."""


class _NotYet(Exception):
    pass


def _call(settings: Settings, url: str | None, method: str, path: str, **more: Any) -> Any:
    """JSON of an answer; tries again while tablets are being restored. Raises QueryError."""
    base = url or settings.query.url or f"http://{settings.query.host}:{settings.query.port}"
    try:
        for attempt in stamina.retry_context(on=_NotYet, attempts=5, wait_initial=0.5, wait_max=3, timeout=None):
            with attempt:
                response = httpx.request(method, base + path, timeout=10, **more)
                if response.status_code == 503:
                    raise _NotYet(response.text)
    except _NotYet as error:
        raise QueryError(f"{base}: not ready: {error}") from None
    except httpx.HTTPError as error:
        raise QueryError(
            f"{base}: no worker answers ({type(error).__name__}); is one running, and is this its address (query.port, --url)?"
        ) from None
    body = orjson.loads(response.content)
    if response.status_code != 200:
        raise QueryError(str(body.get("error") or body.get("detail") or body))
    return body


def health(settings: Settings, url: str | None) -> dict[str, Any]:
    """What /healthz of a worker says. Raises QueryError."""
    row: dict[str, Any] = _call(settings, url, "GET", "/healthz")
    return row


def profiles(settings: Settings, url: str | None, users: list[str], vector: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Profiles of users, and those who have none. Raises QueryError."""
    body = _call(settings, url, "POST", "/v1/profiles:batchGet", json={"user_ids": users, "vector": vector})
    return body["profiles"], body["unknown"]


def ranking(settings: Settings, url: str | None, user: str, items: list[str], content: Path | None) -> dict[str, Any]:
    """The answer of rank. Raises QueryError."""
    try:
        contents = orjson.loads(content.read_bytes()) if content else []
    except ValueError as error:
        raise QueryError(f"{content}: not JSON: {error}") from None
    row: dict[str, Any] = _call(settings, url, "POST", f"/v1/profiles/{quote(user, safe='')}:rank", json={"items": items, "contents": contents})
    return row


def show_profile(row: dict[str, Any], expand: bool) -> RenderableType:
    """A profile as answered, for the terminal; `expand`: as wide as it."""
    shown = {**row, "vector": b"", "vector_type": ""}
    return portrait(msgspec.convert(shown, Profile), row["user_id"], expand)


def row_of(user: str, profile: Profile | None) -> dict[str, Any]:
    """A row of the changelog as JSON."""
    if profile is None:
        return {"user_id": user, "erased": True}
    row: dict[str, Any] = msgspec.to_builtins(profile, builtin_types=(bytes,))
    return {**row, "vector": unpack_vector(profile.vector).tolist()}


def line(user: str, profile: Profile | None) -> str:
    """A row of the changelog as one line."""
    if profile is None:
        return f"{user}  erased"
    top = "  ".join(f"{i.name} {i.weight:.0%}" for i in profile.interests[:4])
    clock = time.strftime("%H:%M:%S", time.localtime(profile.updated_at / 1000))
    return f"{clock}  {user}  {profile.updated_at - profile.received_at} ms  {top}"
