"""Size of a user in RocksDB: a full window of 64 and a portrait of ten interests."""

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson

from benchmarks.common import ITEMS, item, record
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.items import item_key
from schemas.mapping import Mapper, PlatformMapping
from schemas.profiles import decode_profile
from schemas.windows import DTYPE, NO_DWELL, VERSION, Policy
from streams.items import ItemStore, item_rows
from streams.lineup import Lineup
from streams.profiler import Profiler, style_of
from streams.settings import Settings
from streams.tablets import Tablet

USERS, BATCH = 50_000, 1000


def windows(n: int, r: np.random.Generator, keys: np.ndarray) -> list[bytes]:
    """Full windows, as random as they come: nothing in them repeats."""
    rows = np.zeros((n, 64), DTYPE)
    rows["ts_ms"] = 1_790_000_000_000 + np.sort(r.integers(0, 30 * 86_400_000, (n, 64)), axis=1)
    rows["event_id"], rows["item_key"] = r.integers(0, 2**63, (n, 64)), r.choice(keys, (n, 64))
    rows["platform"], rows["behavior"] = r.integers(1, 4, (n, 64)), r.integers(1, 6, (n, 64))
    rows["dwell_ds"], rows["value"] = NO_DWELL, np.nan
    return [VERSION + row.tobytes() for row in rows]


def main() -> None:
    """Fill one tablet, compact it, and look at its files."""
    settings, folder, r = Settings(platforms=()), Path(tempfile.mkdtemp(prefix="currents-bench-")), np.random.default_rng(0)
    tower = load_tower("static")
    store = ItemStore(folder / "items", tower.space_id, tower.dims)
    mapper = Mapper(PlatformMapping(name="shop", code=1, preset="plain"), 0, 0)
    items = [mapper.item(item(n)) for n in range(ITEMS)]
    store.apply([(k, v) for k, v, _ in item_rows(items, tower, 0)], ("items", 0), 0)  # type: ignore[arg-type]
    keys = np.array([item_key(f"shop:i{n}") for n in range(ITEMS)], np.uint64)
    lineup = Lineup(load_encoder("baseline", tower.space_id, tower.dims))
    profiler = Profiler(lambda: lineup, store, style_of(settings), Policy(64))
    tablet = Tablet(0, folder / "tablet-0")
    interests, raw = [], 0
    for start in range(0, USERS, BATCH):
        users = [f"user-{n:08d}".encode() for n in range(start, start + BATCH)]
        full = windows(BATCH, r, keys)
        profiles, _ = profiler(users, full, [0] * BATCH, time.time_ns() // 1_000_000)
        tablet.write(zip(users, full, strict=True), zip(users, profiles, strict=True))
        interests.append(len(decode_profile(profiles[0]).interests))
        raw += sum(map(len, full)) + sum(map(len, profiles))
    tablet.compact()
    tablet.close()
    size = sum(f.stat().st_size for f in (folder / "tablet-0").glob("*.sst"))
    shutil.rmtree(folder)
    figures = {"on disk": round(size / USERS), "before compression": round(raw / USERS), "interests in a portrait": float(np.median(interests))}
    assert orjson.dumps(figures)
    record("disk", figures, "bytes per user", "50,000 users, full windows of 64 random events, 192-d vector, after compaction; goal 3,072")


if __name__ == "__main__":
    main()
