"""A load thread that sends events of the preset `plain`: users are skewed, some events are late, repeated or broken."""

import asyncio
import random
import threading
import time

import orjson
from aiokafka import AIOKafkaProducer


class Load(threading.Thread):
    """Owns a thread that sends events at a rate: 3 % late, 2 % exact duplicates, 1 % broken; seeded. The thread ends when all are acknowledged."""

    def __init__(self, bootstrap: str, topic: str, events: int, rate: float, users: int = 2000, seed: int = 7) -> None:
        super().__init__(daemon=True)
        self._brokers, self._topic, self._events, self._rate, self._users = bootstrap, topic, events, rate, users
        self._random = random.Random(seed)
        self._seed = seed
        self._stopped = False
        self.broken = 0
        self.start()

    def stop(self) -> None:
        """Stop sending."""
        self._stopped = True
        self.join()

    def run(self) -> None:
        asyncio.run(self._send())

    async def _send(self) -> None:
        r = self._random
        producer = AIOKafkaProducer(bootstrap_servers=self._brokers, linger_ms=10, max_batch_size=256 << 10)
        await producer.start()
        began, last = time.monotonic(), b""
        try:
            for n in range(self._events):
                if self._stopped:
                    break
                lot = r.random()
                if lot < 0.01:
                    value, self.broken = b'{"account": 1, "item"', self.broken + 1
                elif lot < 0.03 and last:
                    value = last
                else:
                    now = time.time_ns() // 1_000_000
                    last = value = plain(r, f"{self._seed}-{n}", now - 3_600_000 if lot < 0.06 else now, self._users)
                await producer.send(self._topic, value)
                if n % 50 == 0:
                    await asyncio.sleep(max(0.0, n / self._rate - (time.monotonic() - began)))
            await producer.flush()
        finally:
            await producer.stop()


def plain(r: random.Random, event_id: str, at_ms: int, users: int) -> bytes:
    """Return one event. Low-numbered users act more often."""
    behavior = r.choice(("view", "view", "click", "cart", "buy", "hide"))
    user, item = int(users * r.random() ** 2), r.randrange(600)
    return orjson.dumps({"account": f"u{user}", "item": f"i{item}", "behavior": behavior, "time": at_ms, "id": event_id, "value": r.random()})


def event_row(user: str, n: int = 0) -> bytes:
    """Return an event of a user on item n, some seconds ago."""
    now = time.time_ns() // 1_000_000
    return orjson.dumps({"account": user, "item": f"i{n}", "behavior": "view", "time": now - 9000 + n, "id": f"{user}-{n}"})
