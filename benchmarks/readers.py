"""A load generator of reads for a separate process: python -m benchmarks.readers URL SINGLES BATCHES SECONDS USERS. Prints latencies as JSON.

Open loop: the clock determines when a request is due, and its latency counts from this time, so that waiting does not hide a stall.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np
import orjson
import uvloop

CONNECTIONS, BATCH, WARM_S = 16, 100, 3.0


class Connections:
    """Owns kept-alive HTTP/1.1 connections to one server, and reopens broken ones."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def _open(self) -> None:
        self._free.put_nowait(await asyncio.open_connection(self._host, self._port, limit=1 << 22))

    async def open(self) -> None:
        """Open all connections before the measurement."""
        for _ in range(CONNECTIONS):
            await self._open()

    async def ask(self, request: bytes) -> int:
        """Send a request, read the whole answer and return its status; 0 if the connection broke."""
        reader, writer = await self._free.get()
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        except (OSError, EOFError):
            writer.close()
            await self._open()
            return 0
        self._free.put_nowait((reader, writer))
        return int(head[9:12])


async def send(connections: Connections, request: Callable[[], bytes], rate: float, seconds: float) -> dict[str, float]:
    """Send requests at a rate. Returns latencies in ms, without the first seconds, and the number of requests not answered with 200."""
    took, other, tasks = list[float](), 0, set[asyncio.Task[None]]()
    began = time.perf_counter()

    async def one(due: float) -> None:
        nonlocal other
        status = await connections.ask(request())
        other += status != 200
        if due - began > WARM_S:
            took.append(time.perf_counter() - due)

    for n in range(int(rate * seconds)):
        due = began + n / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.add(task := asyncio.create_task(one(due)))
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    p50, p99, p999 = np.percentile(np.array(took or [0.0]) * 1000, (50, 99, 99.9)).round(2).tolist()
    return {"p50": p50, "p99": p99, "p99.9": p999, "reads/s": round(len(took) / (seconds - WARM_S)), "not 200": other}


async def main(url: str, singles: float, batches: float, seconds: float, users: int) -> None:
    """Send single and batch requests side by side, each on connections of their own."""
    r = random.Random(3)

    def user() -> str:
        return f"u{int(users * r.random() ** 2)}"

    def single() -> bytes:
        return f"GET /v1/profiles/{user()} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()

    def batch() -> bytes:
        body = orjson.dumps({"user_ids": [user() for _ in range(BATCH)]})
        return b"POST /v1/profiles:batchGet HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
            len(body),
            body,
        )

    wanted = {name: (make, rate) for name, make, rate in (("single", single, singles), (f"batch of {BATCH}", batch, batches)) if rate}
    pools = {name: Connections(url) for name in wanted}
    for pool in pools.values():
        await pool.open()
    found = await asyncio.gather(*(send(pools[name], make, rate, seconds) for name, (make, rate) in wanted.items()))
    print(orjson.dumps(dict(zip(wanted, found, strict=True))).decode())


if __name__ == "__main__":
    _, url, singles, batches, seconds, users = sys.argv
    uvloop.run(main(url, float(singles), float(batches), float(seconds), int(users)))
