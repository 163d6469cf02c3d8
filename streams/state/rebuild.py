"""Windows of which no good row was left in their changelog, folded again from the unified topic as far as it reaches."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition

from schemas.events import decode_event
from schemas.items import item_name
from schemas.windows import Policy, fold, row_of
from streams.core.cancel import stop, to_thread
from streams.core.settings import Kafka
from streams.state.tablet import LOST, Tablet
from streams.transport.reading import read_to_end, reader

log = logging.getLogger("currents.restore")


async def rebuild(tablet: Tablet, kafka: Kafka, topic: str, names: Mapping[int, str], policy: Policy) -> int:
    """Fold the events of a tablet's LOST users into their windows; how many of them have a window then. `names`: platforms by code.

    Nothing is published: a restore has marked these users as unpublished.
    """
    users = list(tablet.waiting(LOST))
    if not users:
        return 0
    found, consumer, tp = dict(zip(users, tablet.windows(users), strict=True)), reader(kafka), TopicPartition(topic, tablet.partition)
    await consumer.start()
    try:
        first = await consumer.beginning_offsets([tp])
        async for _, records in read_to_end(consumer, first):
            await to_thread(_fold, found, records, names, policy)
    finally:
        await stop(consumer)
    there = {user: window for user, window in found.items() if window}
    tablet.write(windows=there.items(), resolved=[(LOST, user) for user in users])
    log.warning("tablet %d: no good window was left of %d users: those of %d folded again from %s", tablet.partition, len(users), len(there), topic)
    return len(there)


def _fold(windows: dict[bytes, bytes | None], records: Sequence[Any], names: Mapping[int, str], policy: Policy) -> None:
    rows = dict[bytes, list[bytes]]()
    for record in records:
        if record.key in windows:
            try:
                event = decode_event(record.value or b"")
            except ValueError:
                continue  # a dead letter of whoever reads the topic as it comes
            if event.user_id.encode() == record.key and event.platform in names:
                rows.setdefault(record.key, []).append(row_of(event, item_name(names[event.platform], event.item_id)))
    for user, new in rows.items():
        windows[user] = fold(windows[user], new, policy)
