"""A release's bundle into a folder of the worker's own, verified; and the encoder in it, tried. The serving encoder knows nothing of it."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from encoder.base import Encoder
from encoder.baseline import Baseline
from encoder.bundle import DEMO, MANIFEST, BundleError, open_bundle
from encoder.probe import probe
from encoder.runtime import Device, load_encoder
from schemas.releases import Release, decode_release, encode_release

log = logging.getLogger("currents.releases")
LAST_GOOD = "serving"
"""File beside the bundles: the record of the release that this worker served last."""


class FetchError(RuntimeError):
    """A bundle that cannot be had now: the store is away, or the disk is full. Worth another try."""


def digest_of(where: str) -> tuple[str, dict[str, Any]]:
    """sha256 of a bundle's manifest.json, and the manifest; a folder, an fsspec URL, or `demo`. Raises FetchError, BundleError."""
    data = _read(where, MANIFEST)
    return hashlib.sha256(data).hexdigest(), _manifest(where, data)


def fetch(release: Release, cache: Path) -> Path:
    """The folder of a release's bundle, copied and verified if it is not here yet. Raises FetchError, BundleError."""
    folder = cache / release.digest
    if folder.exists():
        try:
            open_bundle(folder)
            return folder
        except BundleError as error:
            log.warning("%s: fetching again", error)
            shutil.rmtree(folder, ignore_errors=True)
    data = _read(release.bundle, MANIFEST)
    got = hashlib.sha256(data).hexdigest()
    if got != release.digest:
        raise BundleError(f"bundle {release.bundle}: {MANIFEST} has sha256 {got[:12]}…, the release says {release.digest[:12]}…")
    named = _manifest(release.bundle, data).get("files")
    if not isinstance(named, dict) or any(PurePosixPath(n).name != n or n == MANIFEST for n in named):
        raise BundleError(f"bundle {release.bundle}: files: want plain names")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".fetching-", dir=cache))
    except OSError as error:
        raise FetchError(f"{cache}: {error.strerror}") from None
    try:
        (stage / MANIFEST).write_bytes(data)
        for name in named:
            (stage / name).write_bytes(_read(release.bundle, name))
        open_bundle(stage)
        stage.rename(folder)
    except OSError as error:
        raise FetchError(f"{cache}: {error.strerror}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return folder


def _read(where: str, name: str) -> bytes:
    base = str(files("encoder") / "data" / DEMO) if where == DEMO else where.rstrip("/")
    try:
        with fsspec.open(f"{base}/{name}", "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        raise FetchError(f"bundle {where}: no {name} there") from None
    except Exception as error:  # every store of fsspec has errors of its own
        raise FetchError(f"bundle {where}: {type(error).__name__}: {' '.join(str(error).split()):.200}") from None


def _manifest(where: str, data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(data)
    except ValueError as error:
        raise BundleError(f"bundle {where}: {MANIFEST}: want JSON: {error}") from None
    if not isinstance(row, dict):
        raise BundleError(f"bundle {where}: {MANIFEST}: want an object, got {type(row).__name__}")
    return row


def load_release(
    release: Release, cache: Path, item_space_id: str, item_dims: int, threads: int = 1, device: Device = "auto", beside: Encoder | None = None
) -> Encoder:
    """The encoder of a release: fetched, verified, fitting the tower and the encoder `beside` which it will stand, and tried out.

    Raises FetchError, BundleError.
    """
    if not release.bundle:
        encoder: Encoder = Baseline(item_dims, item_space_id)
        said = (release.version if release.version != "baseline" else encoder.version, release.space_id)
    else:
        encoder = load_encoder(str(fetch(release, cache)), item_space_id, item_dims, threads, device)
        said = release.version, release.space_id
    for what, wanted, got in zip(("version", "space_id"), said, (encoder.version, encoder.space_id), strict=True):
        if wanted != got:
            raise BundleError(f"bundle {release.bundle or 'baseline'}: {what} = {got!r}, but the release says {wanted!r}")
    if beside is not None and encoder.space_id == beside.space_id and encoder.dims != beside.dims:
        raise BundleError(f"bundle {encoder.version}: dims = {encoder.dims} in space {encoder.space_id}, where vectors have {beside.dims}")
    probe(encoder, item_dims)
    return encoder


def keep(cache: Path, serving: Release, also: Collection[Release | None]) -> None:
    """Note which release is served, for a start while the store is away, and forget bundles of others."""
    cache.mkdir(parents=True, exist_ok=True)
    stage = cache / f".{LAST_GOOD}"
    stage.write_bytes(encode_release(serving))
    stage.rename(cache / LAST_GOOD)
    kept = {r.digest for r in (serving, *also) if r is not None}
    for folder in cache.iterdir():
        if folder.is_dir() and folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def last_good(cache: Path) -> Release | None:
    """The release that was served here last; None if that is not known."""
    try:
        return decode_release((cache / LAST_GOOD).read_bytes())
    except (OSError, ValueError):
        return None


def opening(wanted: Release, cache: Path, load: Callable[[Release], Encoder]) -> tuple[Encoder, Release]:
    """The encoder that a worker begins with: the release that is to be served, else the one it served last. Raises BundleError without either."""
    try:
        return load(wanted), wanted
    except (FetchError, BundleError) as error:
        last = last_good(cache)
        if last is None or (last.version, last.digest) == (wanted.version, wanted.digest):
            raise BundleError(f"release {wanted.version}: {error}; `currents releases rollback` serves the one before it") from None
        log.error("%s is refused, %s serves on: %s", wanted.version, last.version, error)
        try:
            return load(last), last
        except FetchError as worse:
            raise BundleError(f"release {last.version}: {worse}") from None
