"""Writes the synthetic world to files for training."""

import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from streams.core.errors import InputError
from streams.demo.world import World


def write_world(folder: Path, events: int, users: int, seed: int, days: float, catalogue_seed: int = 1, end_ms: int | None = None) -> dict[str, int]:
    """Write events (without broken ones), items and currents.toml of the synthetic world. Returns the numbers of events and items.

    Event times spread over `days` up to `end_ms`, now by default. Raises InputError if the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "currents.toml").write_text((files("streams.demo") / "demo.toml").read_text())
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
