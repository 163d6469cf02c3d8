"""The input of a run: a continuous stream of events with late, repeated and broken ones; late items; poison; storms."""

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from testkit.load import plain

if TYPE_CHECKING:
    from tests.chaos.cluster import ChaosCluster

ITEMS = 600
HOUR_MS = 3_600_000
POISON: list[tuple[bytes | None, bytes | None]] = [
    (None, b""),
    (None, None),
    (None, b"\xff\xfe\x00"),
    (None, b"[" * 5000),
    (None, b'{"account": "\\ud800", "item": "i1", "behavior": "view", "time": 1}'),
    (None, b'{"account": "u1", "item": "i1", "behavior": "teleport", "time": 1700000000000}'),
    (None, b'{"account": "u1", "item": "i1", "behavior": "view", "time": 1e400}'),
    (None, b'{"account": "u1", "item": "i1", "behavior": "view", "time": 9999999999999999}'),
    (None, b'{"account": {}, "item": [], "behavior": 3, "time": "never"}'),
    (b"k" * 3000, b'{"account": "' + b"x" * 100_000 + b'", "item": "i1"'),
]
STRANGE: list[tuple[bytes | None, bytes | None]] = [(b"u1", b"\x93\x01"), (None, b"{}"), (b"u2", None), (b"\xff", b"\x80"), (b"u3", b"\xc1" * 400)]
"""Bad records for the unified topic itself, as from a foreign producer."""


class Traffic(threading.Thread):
    """Owns a thread that sends plain events at a rate until `stop`: 3 % late, 2 % exact duplicates, 1 % broken, seeded. Also sends late items."""

    def __init__(self, cluster: "ChaosCluster", rate: float, users: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._c, self._rate, self._users, self._seed = cluster, rate, users, seed
        self._topic = f"{cluster.prefix}.in.shop"
        self._over = threading.Event()
        self.sent = 0
        self.poisoned = 0
        self._error: BaseException | None = None

    def stop(self) -> None:
        """Stop sending, and return when everything is acknowledged. Raises the error that ended the thread early."""
        self._over.set()
        self.join()
        if self._error is not None:
            raise AssertionError(f"the load ended early: {self._error!r}")

    def run(self) -> None:
        try:
            asyncio.run(self._send())
        except BaseException as error:
            self._error = error

    async def _send(self) -> None:
        r = random.Random(self._seed)
        producer = AIOKafkaProducer(
            bootstrap_servers=self._c.bootstrap, linger_ms=10, max_batch_size=256 << 10, acks="all", request_timeout_ms=120_000
        )
        await producer.start()
        began, last, item = time.monotonic(), b"", 0
        try:
            while not self._over.is_set():
                lot = r.random()
                if lot < 0.01:
                    value = b'{"account": 1, "item"'
                elif lot < 0.03 and last:
                    value = last
                else:
                    now = time.time_ns() // 1_000_000
                    late = r.choice((1, 1, 30, 24 * 40)) * HOUR_MS if lot < 0.06 else 0
                    last = value = plain(r, f"{self._seed}-{self.sent}", now - late, self._users)
                try:
                    await producer.send(self._topic, value)
                    if self.sent % 200 == 0 and item < ITEMS:
                        await producer.send(f"{self._c.prefix}.in.items", item_of(item))
                        item += 1
                except KafkaError:
                    await asyncio.sleep(0.5)
                    continue
                self.sent += 1
                if self.sent % 25 == 0:
                    ahead = self.sent / self._rate - (time.monotonic() - began)
                    began -= min(ahead + 1, 0)  # do not make up for events missed during broker outages
                    await asyncio.sleep(max(0.0, ahead))
            for n in range(item, ITEMS):
                await producer.send(f"{self._c.prefix}.in.items", item_of(n))
            await producer.flush()
        finally:
            await producer.stop()

    def storm(self, user: str, n: int, seed: int) -> int:
        """Send `n` events of one user at once."""
        r, now = random.Random(seed), time.time_ns() // 1_000_000
        rows = (plain(r, f"storm-{seed}-{k}", now - n + k, 1).replace(b'"u0"', orjson.dumps(user)) for k in range(n))
        return self._c.send(self._topic, rows)

    def poison(self, r: random.Random) -> int:
        """Send unusable records to the platform topic and to the unified topic."""
        strange = r.choices(STRANGE, k=4)
        self.poisoned += len(strange)
        return self._c.send(self._topic, r.choices(POISON, k=12)) + self._c.send(self._c.settings.topic("events"), strange)


def item_of(n: int) -> bytes:
    """Return the JSON of item i<n> of the plain platform."""
    return orjson.dumps({"id": f"i{n}", "title": f"Thing number {n} for area {n % 23}", "categories": [f"Area {n % 23}", f"Kind {n % 5}"]})
