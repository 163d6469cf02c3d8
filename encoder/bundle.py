"""A bundle: one encoder release on disk. Weights never travel without the manifest that says what they are.

<folder>/manifest.json      format, version, space_id, item_space_id, dims, item_dims, max_len, files -> sha256, made_by, metrics
<folder>/encoder.onnx       inputs as encoder.features.model_inputs names them, but items (B, T, dims) projected; output "vector" (B, dims)
<folder>/items.onnx         "vectors" (n, item_dims) of the tower and "residuals" (n, dims) -> "projected" (n, dims)
<folder>/residuals.npz      "keys" (m,) uint64 item keys, "residuals" (m, dims) float16: what training learned of single items
<folder>/config.json, model.safetensors   the torch encoder without its residuals, for warm starts and for workers with a GPU; not needed on a CPU
"""

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 3
READABLE = (2, FORMAT)  # 2 had the residuals in model.safetensors too
DEMO = "demo"
MANIFEST, ONNX, ITEMS, RESIDUALS = "manifest.json", "encoder.onnx", "items.onnx", "residuals.npz"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


MAX_MANIFEST_BYTES = 1 << 20
MAX_NUMBER = 1 << 16
"""Of dims, item_dims and max_len: what is more is a broken manifest, and would be allocated."""
MAX_FILES = 64
MAX_UNPACKED = 1000
"""Times what a compressed array takes, at most, that it may hold: the bound of deflate."""


class BundleError(ValueError):
    """A bundle that cannot be used; the message names the file, the expected and the found value."""


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle: its version, spaces, shapes, file hashes and metrics."""

    version: str
    space_id: str
    """Space of the interest vectors."""
    item_space_id: str
    """Space of the item vectors that it reads: the tower's."""
    dims: int
    item_dims: int
    max_len: int
    files: dict[str, str] = field(default_factory=dict)
    """File -> sha256, hexadecimal."""
    made_by: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    folder: Path
    manifest: Manifest

    @property
    def onnx(self) -> Path:
        """The graph of windows."""
        return self.folder / ONNX

    @property
    def items(self) -> Path:
        """The graph of items."""
        return self.folder / ITEMS


def publish(folder: Path, manifest: Manifest, files: dict[str, bytes]) -> Bundle:
    """Write a bundle atomically. Raises BundleError if the folder exists: releases are never changed."""
    if folder.exists():
        raise BundleError(f"{folder}: exists; a release is never changed, choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        complete = Manifest(**{**asdict(manifest), "files": hashes})
        for name, data in {**files, MANIFEST: json.dumps(asdict(complete), indent=1).encode() + b"\n"}.items():
            with (stage / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        stage.chmod(0o755)
        stage.rename(folder)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    return Bundle(folder, complete)


def parse_manifest(where: str | Path, data: bytes) -> dict[str, Any]:
    """Bytes of manifest.json -> its object, whose `files` are plain names and their hashes. Raises BundleError."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"bundle {where}: {MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        row: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle {where}: {MANIFEST}: want JSON: {error}") from None
    if not isinstance(row, dict):
        raise BundleError(f"bundle {where}: {MANIFEST}: want an object, got {type(row).__name__}")
    named = row.get("files")
    plain = isinstance(named, dict) and all(_plain(name) and isinstance(digest, str) for name, digest in named.items())
    if named is not None and (not plain or len(named) > MAX_FILES):
        raise BundleError(f"bundle {where}: files: want plain names, at most {MAX_FILES}, and their sha256")
    return row


def _plain(name: str) -> bool:
    return name not in ("", ".", "..", MANIFEST) and name.isprintable() and not set(name) & set("/\\:")


def open_bundle(where: str | Path) -> Bundle:
    """Read and verify a bundle: a folder, or `demo` for the shipped one. Raises BundleError."""
    folder = Path(str(files("encoder") / "data" / DEMO)) if where == DEMO else Path(where)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"bundle {folder}: no such folder")
    try:
        with path.open("rb") as file:
            row = parse_manifest(folder, file.read(MAX_MANIFEST_BYTES + 1))
    except FileNotFoundError:
        raise BundleError(f"bundle {folder}: no {MANIFEST}; half copied, or not a bundle") from None
    except OSError as error:
        raise BundleError(f"{path}: {error}") from None
    if row.get("format") not in READABLE:
        raise BundleError(f"{path}: want format {FORMAT}, got {row.get('format')!r:.60}")
    try:
        manifest = Manifest(**row)
        numbers_ok = all(isinstance(n, int) and 0 < n <= MAX_NUMBER for n in (manifest.dims, manifest.item_dims, manifest.max_len))
        if not numbers_ok or not isinstance(manifest.files, dict) or not {ONNX, ITEMS, RESIDUALS} <= manifest.files.keys():
            raise TypeError(f"want whole dims, item_dims and max_len up to {MAX_NUMBER}, and {ONNX}, {ITEMS} and {RESIDUALS} among files")
    except TypeError as error:
        raise BundleError(f"{path}: {error}") from None
    for name, wanted in manifest.files.items():
        try:
            if not (folder / name).is_file():  # a device or a pipe has no end
                raise BundleError(f"{folder / name}: No such file")
            with (folder / name).open("rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{folder / name}: {error.strerror}") from None
        if got != wanted:
            raise BundleError(f"{folder / name}: want sha256 {wanted[:12]}…, got {got[:12]}…; the file was changed or cut")
    return Bundle(folder, manifest)


def _check_arrays(path: Path) -> None:
    """Make sure that residuals.npz has what its headers claim, before numpy allocates it. Raises BundleError, and what zipfile and numpy raise."""
    with zipfile.ZipFile(path) as stored:
        for name in ("keys.npy", "residuals.npy"):
            info = stored.getinfo(name)
            with stored.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            room = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else MAX_UNPACKED)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > room:
                raise BundleError(f"{path}: {name} claims {shape} of {dtype}, {info.compress_size} bytes are there")


def pack_residuals(keys: np.ndarray, residuals: np.ndarray) -> bytes:
    """(m,) uint64 item keys, (m, dims) -> bytes of residuals.npz."""
    stream = io.BytesIO()
    np.savez(stream, keys=keys.astype(np.uint64), residuals=residuals.astype(np.float16))
    return stream.getvalue()


def read_residuals(folder: Path, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """A bundle's (m,) uint64 item keys and (m, dims) float32 residuals. Raises BundleError."""
    path = folder / RESIDUALS
    try:
        _check_arrays(path)
        with np.load(path) as stored:
            keys, residuals = stored["keys"], stored["residuals"].astype(np.float32)
    except BundleError:
        raise
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path}: {error}") from None
    if residuals.shape != (len(keys), dims):
        raise BundleError(f"{path}: want ({len(keys)}, {dims}), got {residuals.shape}")
    return keys, residuals
