"""The job that benchmarks/systems gives to every system is Currents' own."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.common import platform
from benchmarks.systems import compare
from benchmarks.systems.job import Job, Spec, Stub
from encoder.towers import load_tower
from schemas.events import VERSION, Event, encode_event
from schemas.items import ItemVector, encode_item_vector
from schemas.profiles import decode_profile, pack_vector
from streams.core.settings import Settings
from streams.profile.profiler import Profiler, style_of
from streams.releases.routing import Lineup
from streams.state.item_store import ItemStore


def test_same_profiles(tmp_path: Path) -> None:
    """The profiles that the other systems make are those of a worker without portraits, but for the time they were made at."""
    r, tower = np.random.default_rng(0), load_tower("static")
    store = ItemStore(tmp_path / "items", tower.space_id, tower.dims)
    for n in range(30):
        vector = pack_vector(r.standard_normal(tower.dims))
        made = ItemVector(f"shop:i{n}", "", (), tower.space_id, tower.dims, vector, 1)
        store.apply([(made.item.encode(), encode_item_vector(made))], ("items", 0), n)
    table = store.table
    np.savez(tmp_path / "items.npz", keys=table.keys[1 : table.size], vectors=table.vectors[1 : table.size], space=store.space_id)
    job = Job(Spec("", "", 0, 4, "", "", str(tmp_path / "items.npz")))
    users = [f"u{n}".encode() for n in range(9)]
    events = [[Event(VERSION, u.decode(), 1000 + k, k, 1, 1, f"i{r.integers(40)}", "a") for k in range(1 + 12 * n)] for n, u in enumerate(users)]
    windows = [job.fold(None, [encode_event(e) for e in mine]) for mine in events]
    settings = Settings(kafka={"bootstrap": "-"}, platforms=[platform("t")], portrait={"interests": 0})
    worker = Profiler(lambda: Lineup(Stub()), store, style_of(settings), settings.encoding.policy)
    ours = [decode_profile(p) for p in worker(users, windows, [5] * len(users), 77)[0]]
    many, single = job.profiles(users, windows, [5] * len(users)), job.profiles(users[3:4], windows[3:4], [5])
    theirs = [decode_profile(p) for p in (*many[:3], *single, *many[4:])]
    assert [msgspec.structs.replace(p, updated_at=77) for p in theirs] == [msgspec.structs.replace(p, updated_at=77) for p in ours]
    assert any(p.unknown_items for p in ours)
    store.close()


@pytest.mark.kafka
def test_compare() -> None:
    """Currents and stock Faust are run on one broker, and a system whose windows are not what the events say is no system to compare with."""
    found = compare.compare({"currents": {}, "stock_faust": {"events": 1000}}, 6000, 500, 1)
    assert set(found) == {"currents", "stock_faust"}
    assert all(row["events_per_s"] > 0 for row in found.values())
