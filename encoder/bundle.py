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
import os
import shutil
import tempfile
import zipfile
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


def open_bundle(where: str | Path) -> Bundle:
    """Read and verify a bundle: a folder, or `demo` for the shipped one. Raises BundleError."""
    folder = Path(str(files("encoder") / "data" / DEMO)) if where == DEMO else Path(where)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"bundle {folder}: no such folder")
    try:
        row: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise BundleError(f"bundle {folder}: no {MANIFEST}; half copied, or not a bundle") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: want JSON: {error}") from None
    if not isinstance(row, dict) or row.get("format") not in READABLE:
        raise BundleError(f"{path}: want format {FORMAT}, got {row.get('format') if isinstance(row, dict) else type(row).__name__!r}")
    try:
        manifest = Manifest(**row)
        numbers_ok = all(isinstance(n, int) and n > 0 for n in (manifest.dims, manifest.item_dims, manifest.max_len))
        if not numbers_ok or not isinstance(manifest.files, dict) or not {ONNX, ITEMS, RESIDUALS} <= manifest.files.keys():
            raise TypeError(f"want whole dims, item_dims and max_len, and {ONNX}, {ITEMS} and {RESIDUALS} among files")
    except TypeError as error:
        raise BundleError(f"{path}: {error}") from None
    for name, wanted in manifest.files.items():
        try:
            got = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise BundleError(f"{folder / name}: {error.strerror}") from None
        if got != wanted:
            raise BundleError(f"{folder / name}: want sha256 {wanted[:12]}…, got {got[:12]}…; the file was changed or cut")
    return Bundle(folder, manifest)


def pack_residuals(keys: np.ndarray, residuals: np.ndarray) -> bytes:
    """(m,) uint64 item keys, (m, dims) -> bytes of residuals.npz."""
    stream = io.BytesIO()
    np.savez(stream, keys=keys.astype(np.uint64), residuals=residuals.astype(np.float16))
    return stream.getvalue()


def read_residuals(folder: Path, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """A bundle's (m,) uint64 item keys and (m, dims) float32 residuals. Raises BundleError."""
    path = folder / RESIDUALS
    try:
        with np.load(path) as stored:
            keys, residuals = stored["keys"], stored["residuals"].astype(np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: {error}") from None
    if residuals.shape != (len(keys), dims):
        raise BundleError(f"{path}: want ({len(keys)}, {dims}), got {residuals.shape}")
    return keys, residuals
