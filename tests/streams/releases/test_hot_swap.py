"""Releases fetched, verified, warmed up, and changed between two batches."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import numpy as np
import pytest

from encoder.base import Encoder
from encoder.bundle import ITEMS, MANIFEST, ONNX, RESIDUALS, BundleError
from encoder.features import ItemTable, featurize
from encoder.probe import examples
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.releases import Release, encode_release
from streams.monitoring.metrics import Metrics
from streams.releases.bundle_fetch import LAST_GOOD, FetchError, fetch, keep, load_release, opening
from streams.releases.hot_swap import Swapper
from streams.releases.release_log import Announced, announced
from streams.releases.routing import Lineup, in_canary
from testkit.bundles import SHIPPED, infinite_residuals, named, nan_weights, rewrite, variant

TOWER = load_tower("static")
BASELINE = load_encoder("baseline", TOWER.space_id, TOWER.dims)
USERS = [f"u{n}".encode() for n in range(2000)]


def load(release: Release, cache: Path, beside: Encoder | None = None) -> Encoder:
    return load_release(release, cache, TOWER.space_id, TOWER.dims, beside=beside)


def test_fetched_once(tmp_path: Path) -> None:
    """A bundle comes whole from a folder or a store, and is found again while the store is away."""
    release = variant(tmp_path / "b", "v1", 1)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "b"), "/store/b", recursive=True)
    remote = msgspec.structs.replace(release, bundle="memory://store/b")
    folder = fetch(remote, tmp_path / "cache")
    assert folder.name == release.digest
    store.rm("/store", recursive=True)
    assert load(remote, tmp_path / "cache").version == "v1"
    (folder / ONNX).write_bytes(b"cut")
    with pytest.raises(FetchError, match=r"no manifest\.json there"):
        load(remote, tmp_path / "cache")
    assert load(release, tmp_path / "cache").version == "v1"
    assert [f.name for f in (tmp_path / "cache").iterdir()] == [release.digest]


def test_baseline_release(tmp_path: Path) -> None:
    """A release without a bundle is the day-0 encoder of this tower."""
    release = Release(BASELINE.version, TOWER.space_id, "", "", "serving", 1.0, "", 1, "test", "")
    assert load(release, tmp_path).version == BASELINE.version
    with pytest.raises(BundleError, match="the release says 'other'"):
        load(msgspec.structs.replace(release, space_id="other"), tmp_path)


BROKEN: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "wrong digest": (lambda f: None, {"digest": "0" * 64}, "the release says 000000000000"),
    "changed file": (lambda f: (f / ONNX).write_bytes(b"x"), {}, "want sha256"),
    "format": (partial(rewrite, format=9), {}, "want format 3, got 9"),
    "dims": (partial(rewrite, dims=32), {}, r"want \(\d+, 32\)"),
    "item dims": (partial(rewrite, item_dims=7), {}, "item_dims = 7"),
    "item space": (partial(rewrite, item_space_id="other"), {}, "item_space_id = 'other'"),
    "version": (lambda f: None, {"version": "v9"}, "version = 'v1', but the release says 'v9'"),
    "space": (lambda f: None, {"space_id": "s9"}, "space_id = 'space-v1'"),
    "no graph": (lambda f: ((f / ONNX).write_bytes(b"x"), rewrite(f)), {}, "encoder.onnx"),
    "NaN residuals": (lambda f: [spoil(f) for spoil in (infinite_residuals, rewrite)], {}, "not finite"),
    "NaN weights": (lambda f: (nan_weights(ONNX)(f), rewrite(f)), {}, "interest vectors are not finite"),
    "NaN items": (lambda f: (nan_weights(ITEMS)(f), rewrite(f)), {}, "not finite"),
    "paths": (lambda f: (f / MANIFEST).write_text('{"files": {"../x": "0"}}'), {}, "plain names"),
    "not JSON": (lambda f: (f / MANIFEST).write_text("{"), {}, "want JSON"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_refused(tmp_path: Path, how: str) -> None:
    """A bundle that is not what its release says, or does not work, is refused in one line, and nothing of it is kept."""
    spoil, change, message = BROKEN[how]
    release = variant(tmp_path / "b", "v1", 1)
    spoil(tmp_path / "b")
    digest = release.digest if how == "wrong digest" else named_digest(tmp_path / "b")
    with pytest.raises(BundleError, match=message) as refusal:
        load(msgspec.structs.replace(release, **{"digest": digest, **change}), tmp_path / "cache")
    assert "\n" not in str(refusal.value)


def named_digest(folder: Path) -> str:
    try:
        return named(folder).digest
    except (ValueError, KeyError):
        import hashlib

        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def test_other_dims_need_another_space(tmp_path: Path) -> None:
    """Vectors of other dims in the space of those that are served are refused."""
    served = load(variant(tmp_path / "a", "v1", 1), tmp_path / "cache")
    served.dims = 32
    with pytest.raises(BundleError, match="dims = 64 in space space-v1, where vectors have 32"):
        load(variant(tmp_path / "b", "v2", 2, space_id="space-v1"), tmp_path / "cache", served)


def test_opening(tmp_path: Path) -> None:
    """A worker begins with what is to be served; if that is refused with what it served last, also while the store is away, and not without."""
    cache, good = tmp_path / "cache", variant(tmp_path / "a", "v1", 1)
    bad = msgspec.structs.replace(good, digest="0" * 64, version="v2")
    with pytest.raises(BundleError, match=r"release v2: .*`currents releases rollback`"):
        opening(bad, cache, partial(load, cache=cache))
    assert opening(good, cache, partial(load, cache=cache))[1] == good
    keep(cache, good, [None])
    shutil.rmtree(tmp_path / "a")
    encoder, release = opening(bad, cache, partial(load, cache=cache))
    assert (encoder.version, release) == ("v1", good)
    keep(cache, bad, [])
    assert [f.name for f in cache.iterdir()] == [LAST_GOOD]


# The lineup


def test_lineup_splits() -> None:
    """A candidate gets its share of the users by their hash, the same ones always; in shadow nobody."""
    lineup = Lineup(BASELINE, Other("v2", "s2"), 0.2)
    (serving, mine), (candidate, theirs) = lineup.split(USERS)
    assert (serving.version, candidate.version) == (BASELINE.version, "v2")
    assert sorted([*mine, *theirs]) == list(range(len(USERS)))
    assert 0.15 < len(theirs) / len(USERS) < 0.25
    assert all(lineup.of_user(USERS[i]) is candidate for i in theirs)
    assert {i for i, u in enumerate(USERS) if in_canary(u, "v2", 0.1)} < set(theirs.tolist())
    assert {i for i, u in enumerate(USERS) if in_canary(u, "v3", 0.2)} != set(theirs.tolist())
    assert [e.version for e, _ in Lineup(BASELINE, Other("v2", "s2"), 0.0).split(USERS)] == [BASELINE.version]
    assert [e.version for e, _ in Lineup(BASELINE, Other("v2", "s2"), 1.0).split(USERS)] == ["v2"]


class Other:
    """An encoder that only has a name: what a lineup looks at."""

    dims, max_len, projected = 8, 8, None

    def __init__(self, version: str, space_id: str) -> None:
        self.version, self.space_id = version, space_id

    def encode(self, features: Any, table: Any) -> np.ndarray:
        return np.ones((len(features.lengths), 8), np.float32)

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return vectors[:, :8]


def test_spaces_stand_side_by_side() -> None:
    """Items are projected for profiles of earlier spaces until no profile is of them; of one space the encoder that serves projects."""
    a, b, c = Other("v1", "s1"), Other("v2", "s1"), Other("v3", "s2")
    minor = Lineup(a).serve(b)
    assert (minor.of_space("s1"), minor.older) == (b, ())
    major = minor.serve(c)
    assert [major.of_space(s) for s in ("s1", "s2", "s3")] == [b, c, None]
    assert major.of_version("v2", "s1") is b
    assert major.settled().of_space("s1") is None
    tried = Lineup(a).try_out(c, 0.5)
    assert tried.of_space("s2") is c
    assert tried.try_out(None, 0).older == (c,)
    assert tried.serve(c).older == (a,)


# The swap


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as one:
        yield one


def swapper(tmp_path: Path, table: ItemTable, pool: ThreadPoolExecutor, **more: Any) -> Swapper:
    cache = tmp_path / "cache"
    given = {"load": lambda r, beside: load(r, cache, beside), "retry_s": 0.0, "switched": lambda: None, **more}
    return Swapper(Lineup(BASELINE), [], given["load"], table, pool, Metrics(), cache, given["retry_s"], given["switched"])


def records(first: int, *rows: tuple[str, Release]) -> list[Announced]:
    return [announced(first + n, channel.encode(), encode_release(r)) for n, (channel, r) in enumerate(rows)]


def test_swap_and_back(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A record changes encoder and item vectors in one assignment; a broken one changes nothing; going back gives the earlier vectors to the bit."""
    table, windows = examples(TOWER.dims, 32)
    features = featurize(windows, table, 32)
    changes = list[Lineup]()
    s: Swapper = swapper(tmp_path, table, pool, switched=lambda: changes.append(s.lineup))
    v1, v2 = variant(tmp_path / "1", "v1", 1), variant(tmp_path / "2", "v2", 2)
    broken = msgspec.structs.replace(v2, digest="f" * 64, version="v3")

    def served(*rows: tuple[str, Release]) -> tuple[str, np.ndarray]:
        s.take(records(len(s.history), *rows))
        asyncio.run(s.settle())
        return s.lineup.serving.version, s.lineup.serving.encode(features, table)

    version, first = served(("serving", v1))
    assert version == "v1"
    assert changes[-1].of_space(TOWER.space_id) is BASELINE
    version, second = served(("serving", v2))
    assert version == "v2"
    assert not np.allclose(first, second, atol=1e-2)
    assert served(("serving", broken))[0] == "v2"
    assert "sha256" in s.refused["v3"]
    assert s._metrics.value("currents_releases_refused_total", channel="serving") == 1
    s.take([announced(len(s.history), b"serving", b"nonsense")])
    assert served()[0] == "v2"
    assert served(("serving", v1))[0] == "v1"
    np.testing.assert_array_equal(served()[1], first)
    assert len(changes) == 3


def test_projected_before_the_switch(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """All items are in the new space when it takes over, also those that came or changed while it warmed up."""
    table, _ = examples(TOWER.dims, 32)
    r = np.random.default_rng(1)

    def load_slowly(release: Release, beside: Encoder) -> Encoder:
        encoder = load(release, tmp_path / "cache", beside)
        assert encoder.projected is not None
        put = encoder.projected.put

        def put_and_write(part: Any) -> np.ndarray:
            if len(part.rows) > 90:  # the first part: other items come while it is projected
                for key in (3, 5000):
                    pool.submit(table.put, key, r.standard_normal(TOWER.dims).astype(np.float32)).result()
            return put(part)

        encoder.projected.put = put_and_write  # type: ignore[method-assign]
        return encoder

    s = swapper(tmp_path, table, pool, load=load_slowly)
    s.take(records(0, ("serving", variant(tmp_path / "1", "v1", 1))))
    asyncio.run(s.settle())
    encoder = s.lineup.serving
    assert encoder.projected is not None
    assert encoder.projected.next(table) is None
    want = encoder.project(table.vectors[1 : table.size], table.keys[1 : table.size])
    np.testing.assert_allclose(encoder.projected.of(table)[1 : table.size], want, atol=1e-6)


def test_store_away(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A bundle that cannot be had now is tried again; what serves goes on meanwhile."""
    table, _ = examples(TOWER.dims, 32)
    s = swapper(tmp_path, table, pool)
    release = variant(tmp_path / "b", "v1", 1)
    (tmp_path / "b").rename(tmp_path / "away")
    s.take(records(0, ("serving", release)))
    asyncio.run(s.settle())
    assert (s.lineup.serving, "no manifest.json there" in s.refused["v1"]) == (BASELINE, True)
    (tmp_path / "away").rename(tmp_path / "b")
    asyncio.run(s.settle())
    assert (s.lineup.serving.version, s.refused) == ("v1", {})


def test_candidates(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A canary gets its share, a shadow none; the end of the trial, or a broken candidate, leaves the serving encoder alone."""
    table, _ = examples(TOWER.dims, 32)
    s = swapper(tmp_path, table, pool)
    v1 = variant(tmp_path / "1", "v1", 1)

    def seen(state: str, share: float, **change: Any) -> tuple[str | None, float]:
        given = {"state": state, "share": share, **change}
        s.take(records(len(s.history), ("candidate", msgspec.structs.replace(v1, **given))))
        asyncio.run(s.settle())
        assert s.lineup.serving is BASELINE
        return (s.lineup.candidate.version if s.lineup.candidate else None), s.lineup.share

    assert seen("candidate", 0.3) == (None, 0.0)
    assert seen("shadow", 0.0) == ("v1", 0.0)
    assert seen("canary", 0.3) == ("v1", 0.3)
    assert seen("canary", 0.3, digest="e" * 64) == (None, 0.0)
    assert seen("canary", 0.3) == ("v1", 0.3)
    assert seen("rolled-back", 0.0) == (None, 0.0)
    assert s.lineup.of_space("space-v1") is not None
    assert SHIPPED.exists()
    assert (SHIPPED / RESIDUALS).exists()
