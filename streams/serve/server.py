"""The query endpoint on its socket, in the event loop of the process that it belongs to."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from streams.serve.api import Source, make_api
from streams.serve.responses import Problem

KEEP_ALIVE_S = 75  # longer than load balancers keep an idle connection: the side that closes first must be theirs


class _Bounded:
    """Refuses bodies that are too large before they are read."""

    def __init__(self, app: Any, maximum: int) -> None:
        self._app, self._maximum = app, maximum

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if int(headers.get(b"content-length", 0)) > self._maximum or b"chunked" in headers.get(b"transfer-encoding", b""):
            problem = Problem(413, f"body: want at most {self._maximum} bytes (query.max_body_bytes), with their length")
            await problem.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _Server(uvicorn.Server):
    """Signals are the process's own business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(source: Source, listening: socket.socket) -> None:
    """Answer on a listening socket until cancelled."""
    bounded = _Bounded(make_api(source), source.settings.query.max_body_bytes)
    config = uvicorn.Config(
        bounded, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2, timeout_keep_alive=KEEP_ALIVE_S
    )
    server = _Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        server.should_exit = True
        await task
        raise
