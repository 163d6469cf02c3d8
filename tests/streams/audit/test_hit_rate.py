"""The hit rate that the demo tells, and the encoder that is shipped for the synthetic world."""

import tomllib
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from encoder.baseline import Baseline
from encoder.bundle import open_bundle
from encoder.features import ItemTable
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.items import content, item_key, item_name
from schemas.mapping import Mapper, Rejected
from schemas.windows import VERSION, Policy, fold, row_of, rows_of
from streams.audit.hit_rate import comparable, hits
from streams.core.settings import Settings
from streams.demo.world import World
from tests.streams.demo.test_world import START, some

SETTINGS = Settings(**tomllib.loads((files("streams.demo") / "demo.toml").read_text()))


def windows_of(world: World, n: int) -> tuple[list[bytes], ItemTable, np.ndarray]:
    """What a worker would have stored after n events: windows, item vectors, platform of every row."""
    tower, mappers = load_tower("static"), {p.name: Mapper(p, 10**15, 0) for p in SETTINGS.platforms}
    things = [mappers[name].item(value) for name, _, value in world.items()]
    table = ItemTable(tower.dims)
    vectors = tower.encode([content(t) for t in things if not isinstance(t, Rejected)])
    platform = np.zeros(len(things) + 1, np.uint8)
    for thing, vector in zip(things, vectors, strict=True):
        assert not isinstance(thing, Rejected)
        platform[table.put(item_key(thing.item), vector)] = mappers[thing.item.split(":")[0]].mapping.code
    rows: dict[str, list[bytes]] = defaultdict(list)
    for emitted in some(world, n):
        found = mappers[emitted.platform].events(emitted.value, "t", 0, 0, START) if emitted.kind != "bad" else []
        assert not isinstance(found, Rejected)
        for event in found:
            rows[event.user_id].append(row_of(event, item_name(emitted.platform, event.item_id)))
    return [fold(None, mine, Policy(64)) for mine in rows.values()], table, platform


def test_shipped_bundle() -> None:
    """The shipped encoder is whole, small, says how good it is, and reads the shipped tower."""
    bundle, tower = open_bundle("demo"), load_tower("static")
    assert sum(f.stat().st_size for f in bundle.folder.iterdir()) <= 4_000_000
    assert bundle.manifest.metrics["hr@10"] > 0.5
    assert load_encoder("demo", tower.space_id, tower.dims).version == bundle.manifest.version
    assert SETTINGS.encoding.encoder == "demo"
    assert (Path(__file__).parents[3] / "encoder" / "data" / "demo").samefile(bundle.folder)


@pytest.mark.parametrize(("catalogue_seed", "better"), [(1, 0.15), (5, 0.05)], ids=["its own catalogue", "another catalogue"])
def test_shipped_is_better(catalogue_seed: int, better: float) -> None:
    """On users that it was not trained on the shipped encoder ranks the next item clearly better than the decayed mean, on every platform."""
    windows, table, platform = windows_of(World(99, 1500, catalogue_seed=catalogue_seed), 20_000)
    cases = comparable(table, windows, 1500)
    assert len(cases) > 1200
    tower = load_tower("static")
    trained = hits(load_encoder("demo", tower.space_id, tower.dims), table, platform, cases)
    day_0 = hits(Baseline(tower.dims, tower.space_id), table, platform, cases)
    assert trained.mean() > day_0.mean() + better
    on = np.array([rows_of(c)["platform"][-1] for c in cases])
    for code in (1, 2, 3):
        assert trained[on == code].mean() > day_0[on == code].mean()


def test_hits_by_hand() -> None:
    """Ranked are the platform's items but those already met; where nothing is known about a user, the table's order decides."""
    table, dims = ItemTable(12), 12
    for key in range(1, 31):
        table.put(key, np.eye(dims)[key % dims])
    platform = np.array([0] + [1] * 20 + [2] * 10, np.uint8)
    baseline = Baseline(dims, "")

    def window(keys: list[int]) -> bytes:
        rows = np.zeros(len(keys), rows_of(VERSION).dtype)
        rows["item_key"], rows["ts_ms"], rows["platform"] = keys, range(len(keys)), platform[[k if k <= 30 else 1 for k in keys]]
        return VERSION + rows.tobytes()

    cases = [window([1, 13]), window([1, 2]), window([99, 5]), window([99, 15]), window([1, 25])]
    assert hits(baseline, table, platform, cases).tolist() == [True, True, True, False, True]
    assert comparable(table, [*cases, window([1]), window([1, 99])], 100) == cases
    assert len(comparable(table, cases, 2)) == 2
