"""A release's bundle into a folder of the worker's own, verified; and the encoder in it, tried. The serving encoder knows nothing of it."""

import hashlib
import io
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote

import fsspec

from encoder.base import Encoder
from encoder.baseline import Baseline
from encoder.bundle import DEMO, MANIFEST, MAX_MANIFEST_BYTES, BundleError, open_bundle, parse_manifest
from encoder.probe import probe
from encoder.runtime import Device, load_encoder
from schemas.releases import Release, decode_release, encode_release
from streams.core.settings import Settings

log = logging.getLogger("currents.releases")
CHUNK_BYTES = 1 << 20
T = TypeVar("T")
LAST_GOOD = "serving"
"""File beside the bundles: the record of the release that this worker served last."""


class FetchError(RuntimeError):
    """A bundle that cannot be had now: the store is away, or the disk is full. Worth another try."""


class TooLargeError(BundleError):
    """A file of more bytes than it may have."""


@dataclass(frozen=True)
class Limits:
    """What reading a release's bundle may take, and where it may lie."""

    max_bytes: int = 2 << 30
    seconds: float = 300.0
    allowed: tuple[str, ...] | None = None
    """Folders or URLs; None: anywhere, for whoever names a bundle at a command line."""


def limits_of(settings: Settings, folder: Path) -> Limits:
    """Those of a process whose own folder this is."""
    r = settings.releases
    allowed = r.allowed_urls or (settings.retrain.bundles, str(folder), settings.encoding.encoder)
    return Limits(r.max_bundle_mb << 20, r.fetch_timeout_s, allowed)


def digest_of(where: str) -> tuple[str, dict[str, Any]]:
    """sha256 of a bundle's manifest.json, and the manifest; a folder, an fsspec URL, or `demo`. Raises FetchError, BundleError."""
    data = _read(where, MANIFEST, MAX_MANIFEST_BYTES)
    return hashlib.sha256(data).hexdigest(), parse_manifest(where, data)


def fetch(release: Release, cache: Path, limits: Limits = Limits()) -> Path:
    """The folder of a release's bundle, copied and verified if it is not here yet. Raises FetchError, BundleError."""
    if not within(release.bundle, limits.allowed):
        raise BundleError(f"bundle {release.bundle:.200}: lies in none of releases.allowed_urls: {', '.join(limits.allowed or ()) or 'none'}")
    folder = cache / release.digest
    if folder.exists():
        try:
            open_bundle(folder)
            return folder
        except BundleError as error:
            log.warning("%s: fetching again", error)
            shutil.rmtree(folder, ignore_errors=True)
    data = _read(release.bundle, MANIFEST, MAX_MANIFEST_BYTES)
    got = hashlib.sha256(data).hexdigest()
    if got != release.digest:
        raise BundleError(f"bundle {release.bundle}: {MANIFEST} has sha256 {got[:12]}…, the release says {release.digest[:12]}…")
    named = parse_manifest(release.bundle, data).get("files")
    if not isinstance(named, dict):
        raise BundleError(f"bundle {release.bundle}: files: want plain names")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".fetching-", dir=cache))
    except OSError as error:
        raise FetchError(f"{cache}: {error.strerror}") from None
    try:
        (stage / MANIFEST).write_bytes(data)
        left = limits.max_bytes
        for name in named:
            left -= _copy(release.bundle, name, stage / name, left, limits)
        open_bundle(stage)
        stage.rename(folder)
    except OSError as error:
        raise FetchError(f"{cache}: {error.strerror}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return folder


def _read(where: str, name: str, most: int) -> bytes:
    """A small file. Raises FetchError, BundleError where it has more than `most` bytes."""
    sink = io.BytesIO()
    _stream(where, name, sink, most)
    return sink.getvalue()


def _copy(where: str, name: str, path: Path, most: int, limits: Limits) -> int:
    """A file to the disk; its bytes. Raises FetchError, BundleError, and OSError where the disk is full."""
    with path.open("wb") as sink:
        try:
            return _stream(where, name, sink, most)
        except TooLargeError:
            raise BundleError(f"bundle {where}: has more than {limits.max_bytes >> 20} MiB (releases.max_bundle_mb)") from None


def _stream(where: str, name: str, sink: BinaryIO, most: int) -> int:
    base = str(files("encoder") / "data" / DEMO) if where == DEMO else where.rstrip("/")
    done = 0
    try:
        with fsspec.open(f"{base}/{name}", "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                done += len(chunk)
                if done > most:
                    raise TooLargeError(f"bundle {where}: {name} has more than {most} bytes")
                sink.write(chunk)
    except (BundleError, MemoryError):
        raise
    except FileNotFoundError:
        raise FetchError(f"bundle {where}: no {name} there") from None
    except Exception as error:  # every store of fsspec has errors of its own
        raise FetchError(f"bundle {where}: {type(error).__name__}: {' '.join(str(error).split()):.200}") from None
    return done


def within(where: str, allowed: Sequence[str] | None) -> bool:
    """Whether a folder or URL lies in one of some others, its links followed; the shipped bundle always, None allows every place."""
    if allowed is None or where == DEMO:
        return True
    found = _parts(where)
    return found is not None and any(found[: len(a)] == a for one in allowed if (a := _parts(one)) is not None)


def _parts(where: str) -> tuple[str, ...] | None:
    """Scheme, host and path of a place, a folder's with its links followed; None where it is not said plainly."""
    scheme, separator, rest = where.partition("://")
    if not separator or scheme in ("file", "local"):
        path = rest if separator else where
        if "\0" in path or "::" in path or not path:
            return None
        return ("file", *Path(path).resolve().parts)
    plain = unquote(unquote(rest))
    names = [name for name in plain.split("/") if name]
    if {"..", "."} & set(names) or "::" in where or "\\" in plain or set(plain) & set("?#\0"):
        return None
    return (scheme, *names)


def load_release(
    release: Release,
    cache: Path,
    item_space_id: str,
    item_dims: int,
    threads: int = 1,
    device: Device = "auto",
    beside: Encoder | None = None,
    limits: Limits = Limits(),
) -> Encoder:
    """The encoder of a release: fetched, verified, fitting the tower and the encoder `beside` which it will stand, and tried out; all that in time.

    Raises FetchError, BundleError: whatever goes wrong is one of these.
    """
    what = f"bundle {release.bundle or 'baseline'}"

    def work() -> Encoder:
        try:
            return _load(release, cache, item_space_id, item_dims, threads, device, beside, limits)
        except (FetchError, BundleError):
            raise
        except Exception as error:  # MemoryError and RecursionError too: a bundle may claim anything
            raise BundleError(f"{what}: {type(error).__name__}: {' '.join(str(error).split()):.300}") from None

    return in_time(f"{cache} {release.digest or release.version}", what, work, limits.seconds)


_hanging: dict[str, threading.Thread] = {}


def in_time(name: str, what: str, work: Callable[[], T], seconds: float) -> T:
    """What `work` returns or raises. Raises FetchError where that takes too long; it is not begun again under this name while it still runs.

    A thread cannot be ended: it is left alone, and the process does not wait for it.
    """
    if (before := _hanging.get(name)) is not None and before.is_alive():
        raise FetchError(f"{what}: the try before this one still hangs")
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    _hanging[name] = thread = threading.Thread(target=run, name="release", daemon=True)
    thread.start()
    try:
        return done.result(seconds)
    except TimeoutError:
        if done.done():
            raise
        raise FetchError(f"{what}: not here after {seconds:g} s (releases.fetch_timeout_s)") from None
    finally:
        if done.done():
            _hanging.pop(name, None)


def _load(
    release: Release, cache: Path, item_space_id: str, item_dims: int, threads: int, device: Device, beside: Encoder | None, limits: Limits
) -> Encoder:
    if not release.bundle:
        encoder: Encoder = Baseline(item_dims, item_space_id)
        said = (release.version if release.version != "baseline" else encoder.version, release.space_id)
    else:
        encoder = load_encoder(str(fetch(release, cache, limits)), item_space_id, item_dims, threads, device)
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
