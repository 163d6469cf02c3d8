"""A small server with the Schema Registry API. Answers schemas by id, and errors."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Registry(ThreadingHTTPServer):
    """Owns an HTTP server that answers `GET /schemas/ids/N` and counts the requests."""

    def __init__(self, schemas: Mapping[int, Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.schemas, self.asked, self.failures = schemas, list[int](), 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        schema_id = int(self.path.rsplit("/", 1)[1])
        self.server.asked.append(schema_id)
        if self.server.failures:
            self.server.failures -= 1
            self._answer(503, b"{}")
        elif schema_id not in self.server.schemas:
            self._answer(404, b'{"error_code": 40403, "message": "Schema not found"}')
        else:
            answer = self.server.schemas[schema_id]
            self._answer(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def registry(schemas: Mapping[int, Any]) -> Iterator[Registry]:
    """Run a registry with these answers while the context lasts."""
    with Registry(schemas) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
