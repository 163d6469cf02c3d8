"""The network between workers and brokers: a TCP proxy for each pair, which tests can cut and heal."""

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field

CHUNK = 1 << 20  # a whole fetch, because every iteration of the event loop waits on busy cores


@dataclass
class Link:
    """Owns the state of the connection from one worker to one broker."""

    target: int
    port: int = 0
    state: str = "open"
    """`open`; `hold`: no data pass, and data in flight arrive after healing; `refuse`: connections are reset."""
    held: int = 0
    """Number of connections or chunks that the cut affected."""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    opened: asyncio.Event = field(default_factory=asyncio.Event)


class Network:
    """Owns the proxies on loopback and the thread that serves them. `links[worker, broker]` is a pair's link."""

    def __init__(self) -> None:
        self.links: dict[tuple[int, int], Link] = {}
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def add(self, worker: int, broker: int, port: int, target: int) -> None:
        """Add a proxy from `port` to `target`."""
        link = self.links[worker, broker] = Link(target, port)
        link.opened.set()
        asyncio.run_coroutine_threadsafe(self._listen(link), self._loop).result(10)

    def cut(self, links: list[tuple[int, int]], how: str) -> None:
        """Set the state of links: `hold` and `refuse` cut them, `open` heals them."""

        def do() -> None:
            for name in links:
                link = self.links[name]
                link.state = how
                link.opened.clear() if how == "hold" else link.opened.set()
                if how == "refuse":
                    link.held += len(link.writers)
                    for writer in list(link.writers):
                        writer.transport.abort()

        self._loop.call_soon_threadsafe(do)

    def close(self) -> None:
        """Close all connections and stop the thread."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _listen(self, link: Link) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connection(link, reader, writer)

        self._servers.append(await asyncio.start_server(serve, "127.0.0.1", link.port, limit=CHUNK))

    async def _connection(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if link.state == "refuse":
            link.held += 1
            writer.transport.abort()
            return
        link.writers.add(writer)
        try:
            await self._pass(link)
            there, back = await asyncio.open_connection("127.0.0.1", link.target, limit=CHUNK)
        except OSError:  # the broker is down
            link.writers.discard(writer)
            writer.transport.abort()
            return
        link.writers.add(back)
        for end in (writer, back):
            end.transport.set_write_buffer_limits(CHUNK)
        try:
            await asyncio.gather(self._pump(link, reader, back), self._pump(link, there, writer))
        finally:
            for end in (writer, back):
                link.writers.discard(end)
                end.close()

    async def _pump(self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                await self._pass(link)
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(OSError, RuntimeError):
            await self._pass(link)
            sink.close()

    async def _pass(self, link: Link) -> None:
        if not link.opened.is_set():
            link.held += 1
            await link.opened.wait()
