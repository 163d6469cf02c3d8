"""Compares everything that the drained cluster stores with the result expected from its source topics."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.deadletters import decode_dead_letter
from schemas.events import encode_event
from schemas.mapping import Rejected
from schemas.profiles import decode_profile
from streams.audit import windows as verify
from streams.audit.vectors import check_vectors
from streams.core.settings import Settings
from streams.ingest.normalise import mappers
from streams.transport.reading import read_topic
from testkit.checking import is_event, profiles_wrong, read, tables_wrong

MAY_BE_UNTOLD = 0.005  # of the published rows
Place = tuple[str, int, int]
"""(topic, partition, offset) of a record."""


async def records(settings: Settings, topic: str) -> list[Any]:
    return await read_topic(settings.kafka, topic, settings.worker.partitions)


def expected(settings: Settings, sources: Mapping[str, list[Any]]) -> tuple[dict[bytes, bytes], set[Place]]:
    """Compute the expected windows and dead letters from the platform topics only. Maps each record once, at the record's time."""
    made, dead = [], set[Place]()
    mapper = mappers(settings)
    for name, found in sources.items():
        for r in found:
            events = mapper[name].events(r.value, r.topic, r.partition, r.offset, r.timestamp)
            if isinstance(events, Rejected):
                dead.add((r.topic, r.partition, r.offset))
            else:
                made += [SimpleNamespace(key=e.user_id.encode(), value=encode_event(e)) for e in events]
    names = {p.code: p.name for p in settings.platforms}
    return verify.offline_windows(made, names, settings.encoding.policy)[0], dead


def check(
    settings: Settings, tables: Mapping[Path, set[int]], encoders: list[str], folder: Path, say: Callable[[str], None], served: str | None = None
) -> dict[str, int]:
    """Return the numbers of errors by kind. `tables`: data folder -> tablets of the folder's worker at the end. `served`: the version that must have
    made every profile at the end; None for no such check."""
    sources = {p.name: asyncio.run(records(settings, p.topic)) for p in settings.platforms}
    want, dead = expected(settings, sources)
    unified = read(settings, "events")
    dead |= {(r.topic, r.partition, r.offset) for r in unified if not is_event(r)}
    letters = {(d.topic, d.partition, d.offset) for d in (decode_dead_letter(r.value) for r in read(settings, "dead-letters"))}
    published = read(settings, "profiles")
    windows, profiles = verify.latest(read(settings, "windows")), verify.latest(published)
    names = {p.code: p.name for p in settings.platforms}
    folded, _ = verify.offline_windows(filter(is_event, unified), names, settings.encoding.policy)
    tower = load_tower(settings.encoding.tower)
    loaded = [load_encoder(name, tower.space_id, tower.dims) for name in encoders]
    vectors = check_vectors(published, filter(is_event, unified), read(settings, "item-vectors"), loaded, names, settings.encoding.policy)
    for example in vectors.examples:
        say(example)
    return {
        "events": sum(map(len, sources.values())),
        "windows_wrong": max(verify.wrong(folded, windows), verify.wrong(want, windows)),
        "profiles_wrong": profiles_wrong(settings, want, profiles, folder, encoders),
        "changelog_wrong": sum(tables_wrong(settings, tables, windows, profiles).values()),
        "vectors_wrong": vectors.wrong,
        "vectors_untold": vectors.untold,
        "vectors_not_checked": int(vectors.untold > MAY_BE_UNTOLD * vectors.rows),
        "unknown_releases": vectors.unknown_releases,
        "mixed_space_pairs": vectors.mixed_space_pairs,
        "not_over": sum(decode_profile(p).encoder_version != served for p in profiles.values()) if served else 0,
        "published": vectors.rows,
        "dead_letters_missing": len(dead - letters),
        "dead_letters_wrong": len(letters - dead),
        "users": len(want),
        "letters": len(letters),
    }
