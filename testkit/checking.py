"""Compares everything that a cluster stores with the expected result, computed from the log."""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.events import decode_event
from schemas.profiles import decode_profile, unpack_vector
from schemas.rows import KeyValue, RowError, bad_items, bad_profiles, bad_windows
from streams.audit import windows as verify
from streams.core.settings import Settings
from streams.profile.profiler import Profiler, style_of
from streams.releases.routing import Lineup
from streams.state.item_store import ItemStore
from streams.state.tablet import Tablet
from streams.transport.reading import read_topic
from streams.transport.sender import partition_of

RIGHT = {"windows_wrong": 0, "profiles_wrong": 0, "window_tables_wrong": 0, "profile_tables_wrong": 0, "not_committed": 0}
FLOAT16 = 1e-3
Check = Callable[[Sequence[KeyValue]], dict[int, RowError]]
CLOCKS = ("updated_at", "received_at")  # fields that differ between two encodings of one window


def read(settings: Settings, name: str) -> list[Any]:
    """Read every record of one of Currents' own topics."""
    return asyncio.run(read_topic(settings.kafka, settings.topic(name), settings.worker.partitions))


def is_event(record: Any, names: Mapping[int, str] | None = None) -> bool:
    """Whether a worker accepts a record of the unified topic. `names`: platform code -> name."""
    try:
        event = decode_event(record.value or b"")
    except ValueError:
        return False
    return event.user_id.encode() == record.key and (names is None or event.platform in names)


def said(records: Iterable[Any], bad: Check, users: Collection[bytes]) -> dict[bytes, bytes]:
    """What a compacted topic says: the last value of each key. Of `users` that has to be a good row, of others a bad one says nothing."""
    found = list(verify.latest(records).items())
    wrong = bad(found)
    return {user: value for n, (user, value) in enumerate(found) if n not in wrong or user in users}


def usable(records: Sequence[Any], bad: Check) -> list[Any]:
    """Return the good records."""
    wrong = bad([(r.key, r.value) for r in records])
    return [r for n, r in enumerate(records) if n not in wrong]


def compare(settings: Settings, tables: Mapping[Path, set[int]], folder: Path, left: Collection[Path] = ()) -> dict[str, int]:
    """Return the number of wrong rows by kind. `tables`: data folder -> tablets to check; the folders' workers must have stopped.

    `left`: data folders of workers whose tablets went to another worker, which may have republished users.
    """
    names = {p.code: p.name for p in settings.platforms}
    expected, _ = verify.offline_windows((r for r in read(settings, "events") if is_event(r, names)), names, settings.encoding.policy)
    windows, profiles = said(read(settings, "windows"), bad_windows, expected), said(read(settings, "profiles"), bad_profiles, expected)
    return {
        "windows_wrong": verify.wrong(expected, windows),
        "profiles_wrong": profiles_wrong(settings, expected, profiles, folder, [settings.encoding.encoder]),
        **tables_wrong(settings, tables, windows, profiles, left),
    }


def tables_wrong(
    settings: Settings, tables: Mapping[Path, set[int]], windows: Mapping[bytes, bytes], profiles: Mapping[bytes, bytes], left: Collection[Path] = ()
) -> dict[str, int]:
    """Return the numbers of tablet rows that differ from the changelogs. Profiles in the folders `left` may differ in the fields CLOCKS."""
    wrong = {"windows": 0, "profiles": 0}
    for data_dir, partitions in tables.items():
        for p in partitions:
            tablet = Tablet(p, data_dir / f"tablet-{p}")
            for name, changelog in (("windows", windows), ("profiles", profiles)):
                mine = {u: row for u, row in changelog.items() if partition_of(u, settings.worker.partitions) == p}
                found = dict(tablet.scan(name))
                if name == "profiles" and data_dir in left:
                    found |= {u: mine[u] for u, row in found.items() if u in mine and same(row, mine[u])}
                wrong[name] += verify.wrong(mine, found)
            tablet.close()
    return {"window_tables_wrong": wrong["windows"], "profile_tables_wrong": wrong["profiles"]}


def profiles_wrong(settings: Settings, windows: Mapping[bytes, bytes], profiles: Mapping[bytes, bytes], folder: Path, encoders: Iterable[str]) -> int:
    """Return the number of profiles that differ from those made anew of their windows, all items known, by the encoder they name, from `encoders`."""
    tower = load_tower(settings.encoding.tower)
    store = ItemStore(folder / f"items-{time.time_ns()}", tower.space_id, tower.dims)
    store.apply(verify.latest(usable(read(settings, "item-vectors"), bad_items)).items(), ("all", 0), 0)
    versions = {u: decode_profile(p).encoder_version for u, p in profiles.items()}
    right = set[bytes]()
    for name in encoders:
        lineup = Lineup(load_encoder(name, tower.space_id, tower.dims))
        users = sorted(u for u in windows if versions.get(u) == lineup.serving.version)
        profiler = Profiler(partial(Lineup, lineup.serving), store, style_of(settings), settings.encoding.policy)
        made = profiler(users, [windows[u] for u in users], [0] * len(users), 0)[0] if users else []
        right |= {u for u, row in zip(users, made, strict=True) if same(row, profiles[u])}
        for user, row in [pair for pair in zip(users, made, strict=True) if pair[0] not in right][:2]:
            print("want", msgpack.unpackb(row), "\n got", msgpack.unpackb(profiles[user]))
    store.close()
    return len((windows.keys() | profiles.keys()) - right)


def same(one: bytes, other: bytes) -> bool:
    """Whether two profiles are equal apart from the fields CLOCKS and the last bit of float16."""
    a, b = decode_profile(one), decode_profile(other)
    if not np.allclose(unpack_vector(a.vector), unpack_vector(b.vector), atol=FLOAT16):
        return False
    x, y = msgpack.unpackb(one), msgpack.unpackb(other)
    for row in (x, y):
        for field in ("vector", *CLOCKS):
            del row[field]
    return close(x, y)


def close(x: Any, y: Any) -> bool:
    """Whether two values are equal, with a tolerance for floats, because the contract does not fix the order of a sum."""
    if isinstance(x, float) and isinstance(y, float):
        return math.isclose(x, y, abs_tol=FLOAT16)
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(close(x[k], y[k]) for k in x)
    if isinstance(x, list) and isinstance(y, list):
        return len(x) == len(y) and all(map(close, x, y))
    return bool(x == y)
