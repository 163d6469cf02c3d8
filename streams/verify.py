"""The check that Currents makes of itself: stored windows against the offline fold of the whole log."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import TopicPartition

from schemas.events import Event, decode_event
from schemas.items import item_name
from schemas.windows import VERSION, row_of
from streams.restore import read_to_end, reader
from streams.settings import Kafka
from streams.stopping import stop


async def read_topic(kafka: Kafka, topic: str, partitions: int) -> list[Any]:
    """Every record of a topic, in order within its partition."""
    consumer = reader(kafka)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        first = await consumer.beginning_offsets(tps)
        return [record async for _, records in read_to_end(consumer, first) for record in records]
    finally:
        await stop(consumer)


def latest(records: Iterable[Any]) -> dict[bytes, bytes]:
    """What a compacted topic says: the last value of each key, without the erased."""
    rows = {r.key: r.value for r in records}
    return {k: v for k, v in rows.items() if v is not None}


def offline_windows(log: Iterable[Any], names: Mapping[int, str], limit: int) -> tuple[dict[bytes, bytes], int]:
    """Windows as sorting the whole log gives them, and how many events of the log were duplicates. Written apart from the fold on purpose."""
    rows: dict[bytes, dict[tuple[int, int], bytes]] = defaultdict(dict)
    duplicates = 0
    for record in log:
        event: Event = decode_event(record.value)
        row, key = row_of(event, item_name(names[event.platform], event.item_id)), (event.ts_ms, event.event_id)
        mine = rows[record.key]
        duplicates += key in mine
        mine[key] = max(row, mine.get(key, row))
    windows = {user: VERSION + b"".join(mine[k] for k in sorted(mine)[-limit:]) for user, mine in rows.items()}
    return windows, duplicates


def wrong(expected: Mapping[bytes, bytes], found: Mapping[bytes, bytes]) -> int:
    """Users whose window is missing, other, or should not be."""
    return sum(expected.get(u) != found.get(u) for u in expected.keys() | found.keys())
