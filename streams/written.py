"""Logs as files for training: the unified topic between two offsets, and the synthetic world."""

import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from schemas.events import UNIFIED_EVENTS
from schemas.items import UNIFIED_ITEMS
from streams.clients import InputError, consumer, partitions
from streams.settings import Settings
from streams.world import World


def write_topic(settings: Settings, data: str, folder: Path) -> None:
    """`topic` or `topic:FROM-TO`: values of the unified topic by offsets of each partition, and all item vectors. Raises InputError."""
    begin, end = 0, None
    _, _, span = data.partition(":")
    if span:
        try:
            low, high = span.split("-")
            begin, end = int(low or 0), int(high) if high else None
        except ValueError:
            raise InputError(f"{data}: want topic or topic:FROM-TO with whole numbers") from None
    _dump(settings, settings.topic("events"), folder / UNIFIED_EVENTS, begin, end)
    _dump(settings, settings.topic("item-vectors"), folder / UNIFIED_ITEMS, 0, None)


def _dump(settings: Settings, topic: str, path: Path, begin: int, end: int | None) -> None:
    client = consumer(settings)
    try:
        parts = partitions(client, topic)
        first, last = client.beginning_offsets(parts), client.end_offsets(parts)
        start = {tp: max(begin, first[tp]) for tp in parts}
        stop = {tp: last[tp] if end is None else min(end, last[tp]) for tp in parts}
        left = [tp for tp in parts if start[tp] < stop[tp]]
        with path.open("wb") as file:
            for tp in left:  # one partition after the other: the log is read once, and simply
                client.assign([tp])
                client.seek(tp, start[tp])
                while client.position(tp) < stop[tp]:
                    for records in client.poll(1000, max_records=5000).values():
                        file.writelines(r.value for r in records if r.value is not None and r.offset < stop[tp])
    finally:
        client.close()


def write_world(folder: Path, events: int, users: int, seed: int, days: float, catalogue_seed: int = 1, end_ms: int | None = None) -> dict[str, int]:
    """Files of the synthetic world up to `end_ms`, now by default: events (broken ones left out), items, currents.toml; returns how many."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "currents.toml").write_text((files("streams") / "data" / "demo.toml").read_text())
    made, step = World(seed, users, catalogue_seed=catalogue_seed), days * 86_400_000 / max(events, 1)
    end_ms = time.time_ns() // 1_000_000 if end_ms is None else end_ms
    counts = {"events": 0, "items": 0}
    lines: dict[tuple[str, str], list[bytes]] = {}
    for platform, _, value in made.items():
        lines.setdefault((platform, "items"), []).append(value)
        counts["items"] += 1
    clock: Callable[[], int] = lambda: int(end_ms - (events - counts["events"]) * step)  # noqa: E731
    stream = made.events(clock)
    while counts["events"] < events:
        event = next(stream)
        if event.kind != "bad" and event.value is not None:
            lines.setdefault((event.platform, "events"), []).append(event.value)
            counts["events"] += 1
    for (platform, what), rows in lines.items():
        (folder / f"{platform}.{what}.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    return counts
