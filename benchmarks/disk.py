"""Size of a user in RocksDB, on disk and in memory, separately for full windows of 64 events and for profiles with portraits of ten interests.

python -m benchmarks.disk --users 1000000    # all of a million users; by default a part of them, extrapolated to a million
"""

import argparse
import gc
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from rocksdict import Cache

from benchmarks.common import ITEMS, item, record
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.items import item_key
from schemas.mapping import Mapper, PlatformMapping
from schemas.profiles import decode_profile
from schemas.windows import DTYPE, NO_DWELL, VERSION, Policy
from streams.core.settings import Settings
from streams.profile.profiler import Profiler, style_of
from streams.releases.routing import Lineup
from streams.state.item_store import ItemStore, item_rows
from streams.state.tablet import FAMILIES, Tablet

USERS, BATCH, CACHE_MB = 200_000, 1000, 64


def windows(n: int, r: np.random.Generator, keys: np.ndarray) -> list[bytes]:
    """Return n full windows of random rows without repetition."""
    rows = np.zeros((n, 64), DTYPE)
    rows["ts_ms"] = 1_790_000_000_000 + np.sort(r.integers(0, 30 * 86_400_000, (n, 64)), axis=1)
    rows["event_id"], rows["item_key"] = r.integers(0, 2**63, (n, 64)), r.choice(keys, (n, 64))
    rows["platform"], rows["behavior"] = r.integers(1, 4, (n, 64)), r.integers(1, 6, (n, 64))
    rows["dwell_ds"], rows["value"] = NO_DWELL, np.nan
    return [VERSION + row.tobytes() for row in rows]


def on_disk(tablet: Tablet, family: str) -> int:
    """Return the bytes of a column family's files."""
    return int(tablet.family(family).property_int_value("rocksdb.total-sst-files-size") or 0)


def in_memory(tablet: Tablet) -> int:
    """Return RocksDB's memory outside its block cache, bytes: memtables, indexes and filters."""
    names = ("rocksdb.cur-size-all-mem-tables", "rocksdb.estimate-table-readers-mem")
    return sum(int(tablet.family(f).property_int_value(n) or 0) for f in FAMILIES for n in names)


def profiler_of(folder: Path) -> tuple[Profiler, np.ndarray]:
    """Return a profiler with the baseline encoder, and the keys of its known items."""
    tower = load_tower("static")
    store = ItemStore(folder / "items", tower.space_id, tower.dims)
    mapper = Mapper(PlatformMapping.model_validate({"name": "shop", "code": 1, "preset": "plain"}), 0, 0)
    items = [mapper.item(item(n)) for n in range(ITEMS)]
    store.apply([(k, v) for k, v, _ in item_rows(items, tower, 0)], ("items", 0), 0)  # type: ignore[arg-type]
    lineup = Lineup(load_encoder("baseline", tower.space_id, tower.dims))
    profiler = Profiler(lambda: lineup, store, style_of(Settings(platforms=())), Policy(64))
    return profiler, np.array([item_key(f"shop:i{n}") for n in range(ITEMS)], np.uint64)


def main() -> None:
    """Fill one tablet, compact it, read all of it, and measure its files and the process's memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=USERS)
    n = parser.parse_args().users
    folder, r, process = Path(tempfile.mkdtemp(prefix="currents-bench-")), np.random.default_rng(0), psutil.Process()
    profiler, keys = profiler_of(folder)
    gc.collect()
    resident = process.memory_info().rss
    tablet = Tablet(0, folder / "tablet-0", Cache(CACHE_MB << 20))
    interests, raw = [], 0
    order = r.permutation(n)  # random order: RocksDB would move ordered files down unchanged, compressed with lz4
    for start in range(0, n, BATCH):
        users = [f"user-{k:08d}".encode() for k in order[start : start + BATCH]]
        full = windows(len(users), r, keys)
        profiles, _ = profiler(users, full, [0] * len(users), time.time_ns() // 1_000_000)
        tablet.write(zip(users, full, strict=True), zip(users, profiles, strict=True))
        interests.append(len(decode_profile(profiles[0]).interests))
        raw += sum(map(len, full)) + sum(map(len, profiles))
    tablet.compact()
    for k in r.integers(0, n, 20_000):
        tablet.profile(f"user-{k:08d}".encode())
    gc.collect()
    windows_bytes, profiles_bytes, memory = on_disk(tablet, "windows"), on_disk(tablet, "profiles"), in_memory(tablet)
    rss = process.memory_info().rss - resident
    tablet.close()
    size = sum(f.stat().st_size for f in (folder / "tablet-0").glob("*.sst"))
    shutil.rmtree(folder)
    figures = {
        "on disk": round(size / n),
        "windows on disk": round(windows_bytes / n),
        "profiles on disk": round(profiles_bytes / n),
        "before compression": round(raw / n),
        "indexes, filters and memtables in memory": round(memory / n, 1),
        "interests in a portrait": float(np.median(interests)),
        "a million users, GiB": {
            "profiles on disk": round(profiles_bytes / n * 1e6 / 2**30, 3),
            "windows on disk": round(windows_bytes / n * 1e6 / 2**30, 3),
            "in memory": round((memory / n * 1e6 + (CACHE_MB << 20)) / 2**30, 3),
        },
    }
    note = (
        f"{n:,} users, full windows of 64 random events, 192-d vector, after compaction; in memory: with a block cache of {CACHE_MB} MiB; "
        "goal 3,072 in all, window 2,253, a million without windows 0.8 GiB"
    )
    record("disk", figures, "bytes per user", note, resident_mib=round(rss / 2**20), users=n)


if __name__ == "__main__":
    main()
