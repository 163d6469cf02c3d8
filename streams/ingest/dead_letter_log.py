"""The topic of dead letters, read from its beginning to its end."""

import time
from collections.abc import Iterator
from typing import Any

from schemas.deadletters import DeadLetter, decode_dead_letter
from streams.core.settings import Settings
from streams.monitoring.rejected import Rejected
from streams.transport.clients import consumer, partitions

IDLE_S = 1.5  # a log that says nothing for this long has ended


def dead_letters(settings: Settings) -> Iterator[tuple[Any, DeadLetter]]:
    """(record, letter) of the whole topic; what is no letter is left out."""
    client, rejected = consumer(settings), Rejected()
    try:
        tps = partitions(client, settings.topic("dead-letters"))
        client.assign(tps)
        client.seek_to_beginning(*tps)
        last = time.monotonic()
        while time.monotonic() - last < IDLE_S:
            for records in client.poll(300).values():
                for r in records:
                    last = time.monotonic()
                    try:
                        letter = decode_dead_letter(r.value)
                    except ValueError as error:
                        rejected(r, error)
                        continue
                    yield r, letter
    finally:
        client.close()
