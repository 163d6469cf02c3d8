"""A client of Confluent's Schema Registry API: fetches schemas beside the event loop's work, keeps them, and hands mappers only what is at hand."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import httpx
import orjson

from schemas.formats import AvroSchema, FormatError, JsonSchema, Schema, framed
from streams.core.settings import Settings

log = logging.getLogger("currents.schemas")
MAX_BYTES = 1_000_000  # of an answer
KEPT = 1_000  # schemas, and ids without one
AT_ONCE = 4  # requests
AT_MOST = 50  # ids asked for a batch of records: whoever writes random ids shall not keep a worker busy
UNKNOWN_S, FAILED_S = 60.0, 5.0  # how long an id counts as unknown, and a registry as away, before it is asked again
PAUSES_S = (0.2, 1.0, 3.0)  # between tries


class Record(Protocol):
    """As far as schemas are concerned."""

    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102


def ids_of(records: Iterable[Record]) -> set[int]:
    """The ids of schemas in the framing of some records' keys and values."""
    return {i for r in records for data in (r.value, r.key) if data and not data[0] and (i := framed(data)) is not None}


class SchemaRegistry:
    """Schemas by id. `fetch` on the event loop, `schema` from any thread."""

    def __init__(self, url: str, username: str = "", password: str = "", timeout_s: float = 5.0, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._url, self._auth = url.rstrip("/"), (username, password) if username else None
        self._timeout_s, self._pauses_s = timeout_s, pauses_s
        self._schemas: OrderedDict[int, Schema] = OrderedDict()
        self._refused: OrderedDict[int, tuple[float, FormatError]] = OrderedDict()

    def schema(self, schema_id: int) -> Schema:
        """A schema that was fetched. Raises FormatError with the reason why there is none."""
        found = self._schemas.get(schema_id)
        if found is not None:
            return found
        refused = self._refused.get(schema_id)
        raise refused[1] if refused else FormatError("no-schema", f"schema {schema_id}, which was not fetched: too many schemas at once")

    async def fetch(self, ids: Iterable[int]) -> None:
        """Ask for those that are not at hand; returns when each has a schema or a reason. Raises nothing."""
        now = time.monotonic()
        wanted = [i for i in sorted(ids) if i not in self._schemas and not self._waits(i, now)][:AT_MOST]
        if not wanted:
            return
        limit = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(auth=self._auth, timeout=self._timeout_s, follow_redirects=False) as client:

            async def one(schema_id: int) -> None:
                async with limit:
                    await self._one(client, schema_id)

            await asyncio.gather(*map(one, wanted))

    def _waits(self, schema_id: int, now: float) -> bool:
        refused = self._refused.get(schema_id)
        return refused is not None and refused[0] > now

    async def _one(self, client: httpx.AsyncClient, schema_id: int) -> None:
        why = ""
        for pause in (*self._pauses_s, None):
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, body = await self._get(client, schema_id)
            except (httpx.HTTPError, OSError, TimeoutError) as error:
                why = type(error).__name__
            else:
                if status < 500 and status != 429:
                    await asyncio.to_thread(self._take, schema_id, status, body)
                    return
                why = f"status {status}"
            if pause is not None:
                await asyncio.sleep(pause)
        log.warning("schema %d: the registry does not answer (%s)", schema_id, why)
        self._refuse(schema_id, FAILED_S, FormatError("no-schema", f"schema {schema_id} of the registry, which does not answer ({why})"))

    async def _get(self, client: httpx.AsyncClient, schema_id: int) -> tuple[int, bytes]:
        async with client.stream("GET", f"{self._url}/schemas/ids/{schema_id}") as response:
            body = b""
            async for chunk in response.aiter_bytes(65_536):
                body += chunk
                if len(body) > MAX_BYTES:
                    return 413, b""
            return response.status_code, body

    def _take(self, schema_id: int, status: int, body: bytes) -> None:
        try:
            self._schemas[schema_id] = _compiled(schema_id, status, body)
            while len(self._schemas) > KEPT:
                self._schemas.popitem(last=False)
        except FormatError as error:
            self._refuse(schema_id, UNKNOWN_S, error)

    def _refuse(self, schema_id: int, seconds: float, why: FormatError) -> None:
        self._refused[schema_id] = (time.monotonic() + seconds, why)
        while len(self._refused) > KEPT:
            self._refused.popitem(last=False)


def _compiled(schema_id: int, status: int, body: bytes) -> Schema:
    """The answer of a registry -> a schema. Raises FormatError."""
    if status != 200:
        raise FormatError("no-schema", f"schema {schema_id} of the registry, which answers {status}")
    try:
        answer: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    text = answer.get("schema") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise FormatError("no-schema", f"schema {schema_id} of the registry, whose answer is none")
    kind = answer.get("schemaType", "AVRO")
    if answer.get("references"):
        raise FormatError("no-schema", f"a schema without references to others (schema {schema_id})")
    if kind == "JSON":
        return JsonSchema()
    if kind == "AVRO":
        return AvroSchema(text)
    raise FormatError("unknown-format", f"JSON or Avro, schema {schema_id} is {str(kind)[:40]}")


def registry_of(settings: Settings) -> SchemaRegistry | None:
    """The registry of the settings, if there is one."""
    i = settings.ingest
    password = i.schema_registry_password.get_secret_value() if i.schema_registry_password else ""
    return SchemaRegistry(i.schema_registry, i.schema_registry_username, password) if i.schema_registry else None
