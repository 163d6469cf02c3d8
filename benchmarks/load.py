"""A load generator for a separate process: python -m benchmarks.load BOOTSTRAP TOPIC RATE SECONDS USERS."""

import asyncio
import random
import sys
import time

from aiokafka import AIOKafkaProducer

from benchmarks.common import BEHAVIORS, ITEMS, PARTITIONS
from streams.transport.sender import partition_of

TICK_S = 0.02


async def main(bootstrap: str, topic: str, rate: float, seconds: float, users: int) -> None:
    """Send a batch to each partition every 20 ms, so that sending is cheap and even."""
    producer, r, n = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=512 << 10), random.Random(5), 0
    await producer.start()
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        batches = [producer.create_batch() for _ in range(PARTITIONS)]
        now = time.time_ns() // 1_000_000
        for n in range(n, int(elapsed * rate)):  # noqa: B020 - goes on where the last tick ended
            user = f"u{int(users * r.random() ** 2)}"
            row = f'{{"account":"{user}","item":"i{r.randrange(ITEMS)}","behavior":"{r.choice(BEHAVIORS)}","time":{now},"id":"l{n}"}}'
            p, key, value = partition_of(user.encode(), PARTITIONS), user.encode(), row.encode()
            if batches[p].append(key=key, value=value, timestamp=now) is None:
                await producer.send_batch(batches[p], topic, partition=p)
                batches[p] = producer.create_batch()
                batches[p].append(key=key, value=value, timestamp=now)
        n = max(n, int(elapsed * rate))
        for p, batch in enumerate(batches):
            if batch.record_count():
                await producer.send_batch(batch, topic, partition=p)
        await asyncio.sleep(TICK_S)
    await producer.stop()


if __name__ == "__main__":
    _, bootstrap, topic, rate, seconds, users = sys.argv
    asyncio.run(main(bootstrap, topic, float(rate), float(seconds), int(users)))
