"""Bundles and stores that mean harm: each is a refusal, in bounded bytes and time, and delays nothing."""

import asyncio
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import msgspec
import pytest

from encoder.bundle import ITEMS, MANIFEST, ONNX, RESIDUALS, BundleError
from encoder.features import ItemTable
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.releases import Release, encode_release
from streams.core.settings import Settings
from streams.monitoring.metrics import Metrics
from streams.releases.bundle_fetch import FetchError, Limits, in_time, limits_of, load_release, within
from streams.releases.hot_swap import MOST_REFUSED, Swapper
from streams.releases.release_log import announced
from streams.releases.routing import Lineup
from testkit.bundles import rewrite, variant

TOWER = load_tower("static")
BASELINE = load_encoder("baseline", TOWER.space_id, TOWER.dims)


def load(release: Release, cache: Path, limits: Limits | None = None) -> object:
    return load_release(release, cache, TOWER.space_id, TOWER.dims, limits=limits or Limits())


def claims(shape: str) -> bytes:
    """residuals.npz whose arrays are of 10^11 rows, as their headers say."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name, dtype in (("keys", "<u8"), ("residuals", "<f2")):
            header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64))
    return sink.getvalue()


def put(name: str, data: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(data)
        rewrite(folder)

    return spoil


def changed(**values: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        rewrite(folder, **values)

    return spoil


def manifest(data: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / MANIFEST).write_bytes(data)

    return spoil


DEEP = b"[" * 200_000 + b"]" * 200_000
HOSTILE: dict[str, Callable[[Path], None]] = {
    "rows": put(RESIDUALS, claims("(100000000000, 64)")),
    "negative rows": put(RESIDUALS, claims("(-1, 64)")),
    "dims of 10^11": changed(dims=10**11),
    "length of 10^11": changed(max_len=10**11),
    "deep manifest": manifest(b'{"files": ' + DEEP + b"}"),
    "large manifest": manifest(b" " * (2 << 20)),
    "graph": put(ONNX, b"\x08\xff" * 500),
    "graph of items": put(ITEMS, b""),
    "parent": manifest(json.dumps({"files": {"..": "0"}}).encode()),
    "no name": manifest(json.dumps({"files": {"": "0"}}).encode()),
    "many files": manifest(json.dumps({"files": {f"f{n}": "0" for n in range(100)}}).encode()),
    "files as a list": manifest(json.dumps({"files": ["a"]}).encode()),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_bundle(tmp_path: Path, how: str) -> None:
    """Whatever a bundle claims, it is refused for good, in one line, and nothing of it is kept."""
    release = variant(tmp_path / "b", "v1", 1)
    HOSTILE[how](tmp_path / "b")
    digest = hashlib.sha256((tmp_path / "b" / MANIFEST).read_bytes()).hexdigest()
    with pytest.raises(BundleError) as refusal:
        load(msgspec.structs.replace(release, digest=digest), tmp_path / "cache")
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "cache").glob(".fetching-*"))


class File:
    """What `fsspec.open` gives."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def opened(folder: Path, graph: Callable[[int], bytes]) -> Callable[..., object]:
    """`fsspec.open` of a store that has a bundle whose graph is read by `graph`."""

    def open_(url: str, mode: str) -> object:
        return File(graph) if url.endswith(ONNX) else fsspec.filesystem("file").open(str(folder / url.rpartition("/")[2]), mode)

    return open_


def test_endless_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without end is given up at the bound, and the bundle refused for good."""
    release, read = variant(tmp_path / "b", "v1", 1), list[int]()

    def endless(n: int) -> bytes:
        read.append(n)
        return bytes(n)

    monkeypatch.setattr("streams.releases.bundle_fetch.fsspec.open", opened(tmp_path / "b", endless))
    with pytest.raises(BundleError, match=r"more than 8 MiB \(releases.max_bundle_mb\)"):
        load(release, tmp_path / "cache", Limits(max_bytes=8 << 20))
    assert sum(read) < 16 << 20


def test_hanging_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs is given up in time, and not asked twice at once; the bundle is tried again."""
    release, may = variant(tmp_path / "b", "v1", 1), threading.Event()
    asked = list[int]()

    def hanging(n: int) -> bytes:
        asked.append(n)
        may.wait(60)
        return b""

    monkeypatch.setattr("streams.releases.bundle_fetch.fsspec.open", opened(tmp_path / "b", hanging))
    with pytest.raises(FetchError, match=r"not here after 0.2 s \(releases.fetch_timeout_s\)"):
        load(release, tmp_path / "cache", Limits(seconds=0.2))
    with pytest.raises(FetchError, match="still hangs"):
        load(release, tmp_path / "cache", Limits(seconds=0.2))
    assert len(asked) == 1
    may.set()


def test_in_time() -> None:
    """What the work returns or raises, a TimeoutError of its own too, is passed on."""
    assert in_time("a", "a", lambda: 5, 5) == 5
    with pytest.raises(ZeroDivisionError):
        in_time("a", "a", lambda: 1 // 0, 5)


WITHIN = [
    ("/data/bundles/v1", True), ("/data/bundles", True), ("file:///data/bundles/v1", True), ("/data/bundles/../secret", False),
    ("/data/bundles-of-others/v1", False), ("/data/bundles/v1/../../x", False), ("/etc", False), ("", False), ("/data/bundles/\0", False),
    ("s3://bucket/releases/v1", True), ("s3://bucket/releases-x/v1", False), ("s3://bucket/releases/../x", False), ("s3://other/releases/v1", False),
    ("s3://bucket/releases/%2e%2e/x", False), ("s3://bucket/releases/%252e%252e/x", False), ("gs://bucket/releases/v1", False),
    ("simplecache::s3://bucket/releases/v1", False), ("s3://bucket/releases/v1?x", False), ("demo", True), ("http://169.254.169.254/x", False),
]  # fmt: skip


@pytest.mark.parametrize(("where", "allowed"), WITHIN)
def test_within(where: str, allowed: bool) -> None:
    """A bundle lies within an allowed place if that is its beginning, name by name, after all is resolved."""
    assert within(where, ("/data/bundles", "s3://bucket/releases/")) is allowed


def test_links_are_followed(tmp_path: Path) -> None:
    """A link out of an allowed folder leads out of it."""
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "v1").symlink_to(tmp_path)
    assert not within(str(tmp_path / "allowed" / "v1"), (str(tmp_path / "allowed"),))


def test_not_allowed(tmp_path: Path) -> None:
    """A bundle from elsewhere is refused before anything is read; by default the settings' own folders are allowed."""
    release = variant(tmp_path / "b", "v1", 1)
    settings = Settings(worker={"data_dir": tmp_path / "data"}, retrain={"bundles": str(tmp_path / "bundles")})
    with pytest.raises(BundleError, match=r"in none of releases.allowed_urls: .*bundles, .*data"):
        load(release, tmp_path / "cache", limits_of(settings, tmp_path / "data"))
    settings = Settings(releases={"allowed_urls": [str(tmp_path)], "max_bundle_mb": 5})
    assert limits_of(settings, tmp_path).max_bytes == 5 << 20
    load(release, tmp_path / "cache", limits_of(settings, tmp_path))


def record(offset: int, release: Release) -> object:
    return announced(offset, b"serving", encode_release(release))


def test_rollback_while_a_load_hangs(tmp_path: Path) -> None:
    """A record that goes back is followed while the release before it still hangs."""
    may, good = threading.Event(), variant(tmp_path / "a", "v1", 1)
    hangs = msgspec.structs.replace(good, version="v2", digest="1" * 64)

    def loading(release: Release, serving: object) -> object:
        return may.wait(60) if release.version == "v2" else load(release, tmp_path / "cache")

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as pool:
            s = Swapper(Lineup(BASELINE), [], loading, ItemTable(TOWER.dims), pool, Metrics(), tmp_path / "cache", 30.0)  # type: ignore[arg-type]
            s.take([record(0, hangs)])  # type: ignore[list-item]
            settling = asyncio.ensure_future(s.settle())
            await asyncio.sleep(0.1)
            assert (settling.done(), s.lineup.serving.version) == (False, BASELINE.version)
            s.take([record(1, good)])  # type: ignore[list-item]
            await s.settle()
            assert s.lineup.serving.version == "v1"
            may.set()
            await settling

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [MemoryError("10^11 rows"), RecursionError("deep"), OSError("away"), KeyError("x")])
def test_whatever_is_raised(tmp_path: Path, error: Exception) -> None:
    """Whatever loading raises is a refusal, and what is served stays."""

    def fails(release: Release, serving: object) -> object:
        raise error

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as pool:
            s = Swapper(Lineup(BASELINE), [], fails, ItemTable(TOWER.dims), pool, Metrics(), tmp_path, 30.0)  # type: ignore[arg-type]
            s.take([record(0, Release("v1", "s", "b", "0" * 64, "serving", 1.0, "", 1, "test", ""))])  # type: ignore[list-item]
            await s.settle()
            assert type(error).__name__ in s.refused["v1"]
            assert s.lineup.serving is BASELINE

    asyncio.run(scenario())


def test_refusals_are_bounded(tmp_path: Path) -> None:
    """However many hostile records come, the newest refusals alone are kept, and all are counted."""
    with ThreadPoolExecutor(1) as pool:
        metrics = Metrics()
        s = Swapper(Lineup(BASELINE), [], lambda *_: BASELINE, ItemTable(TOWER.dims), pool, metrics, tmp_path, 30.0)
        s.take([announced(n, b"\xff", b"noise") for n in range(300)], "c.releases")
        assert len(s.refused) == MOST_REFUSED
        assert "record 299" in s.refused
        assert metrics.value("currents_rejected_rows_total", topic="c.releases") == 300
