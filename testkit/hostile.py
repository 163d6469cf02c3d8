"""Bad rows for each of Currents' own topics, also under keys of real users and items."""

from collections.abc import Iterable, Iterator

import msgpack
import numpy as np
from aiokafka import AIOKafkaProducer

from schemas.profiles import pack_vector
from streams.core.settings import Settings
from streams.transport.sender import partition_of

Row = tuple[bytes | None, bytes | None]
DEEP = b"\x91" * 5000 + b"\x90"
NOISE = (b"", b"\x00", b"noise", b"\xff" * 40, DEEP, b"[" * 5000, b'{"from": [1]}', b"\x80", b"\xc0")
KEYS = (None, b"", b"\xff\xfe", b"x" * 5000)


def spoilt(value: bytes) -> Iterator[bytes]:
    """Yield unusable variants of a good value, which is a window or a MessagePack map."""
    yield from (value[:-1], value[: len(value) // 2], value + b"\x00", *NOISE)
    if value[:1] == b"\x01":
        yield b"\x07" + value[1:]
        yield value[:1] + value[33:] + value[1:33] if len(value) > 33 else value[:1]  # moves the oldest row to the end
        yield value[:25] + b"\xc8" + value[26:]  # a platform code out of range
        return
    row = msgpack.unpackb(value)
    yield bytes(msgpack.packb(row | {"v": 9}))
    if "vector" in row:
        n = row["dims"]
        for vector in (np.full(n, np.inf), np.full(n, np.nan)):
            yield bytes(msgpack.packb(row | {"vector": pack_vector(vector)}))
        yield bytes(msgpack.packb(row | {"dims": n + 1}))
        yield bytes(msgpack.packb(row | {"vector": pack_vector(np.ones(n + 1)), "dims": -n}))


def rows(good: Iterable[tuple[bytes, bytes]]) -> Iterator[Row]:
    """Make unusable rows of good ones: each good key with an unusable value, and each good value under an unusable key."""
    for n, (key, value) in enumerate(good):
        found = list(spoilt(value))
        yield key, found[n % len(found)]
        yield f"nobody-{n}".encode(), found[(n + 1) % len(found)]
        yield KEYS[n % len(KEYS)], value
        yield KEYS[n % len(KEYS)], found[n % len(found)]


async def write(settings: Settings, topic: str, found: Iterable[Row], partitions: int) -> int:
    """Send rows to the partitions of their keys, except rows without key and value, which no client sends. Returns the number sent."""
    producer, n = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap, max_request_size=8 << 20), 0
    await producer.start()
    try:
        for key, value in (row for row in found if row != (None, None)):
            await producer.send(topic, value, key, partition=partition_of(key or b"", partitions))
            n += 1
    finally:
        await producer.stop()
    return n
