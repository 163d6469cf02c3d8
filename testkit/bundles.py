"""Variants of the shipped bundle for tests: with noise on the weights, or damaged in one way."""

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from encoder.bundle import ITEMS, MANIFEST, ONNX, RESIDUALS, pack_residuals
from schemas.releases import Release

SHIPPED = Path(str(files("encoder") / "data" / "demo"))


def variant(folder: Path, version: str, seed: int, scale: float = 0.3, base: Path = SHIPPED, **manifest: Any) -> Release:
    """Write a copy of the bundle `base` with noise on its matrices; return its release. The copy has its own space unless `manifest` sets one."""
    shutil.copytree(base, folder)
    r = np.random.default_rng(seed)
    for name in (ONNX, ITEMS):
        model = onnx.load(str(folder / name))
        for tensor in model.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if value.dtype == np.float32 and value.ndim == 2:
                noise = r.standard_normal(value.shape).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(value + scale * value.std() * noise, tensor.name))
        onnx.save(model, str(folder / name))
    return rewrite(folder, **{"version": version, "space_id": f"space-{version}", **manifest})


def rewrite(folder: Path, **manifest: Any) -> Release:
    """Update the manifest's digests and set the given fields. Returns the bundle's release."""
    row = json.loads((folder / MANIFEST).read_text())
    row["files"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in row["files"]}
    (folder / MANIFEST).write_text(json.dumps(row | manifest))
    return named(folder)


def named(folder: Path) -> Release:
    """Return the release of an unchanged bundle."""
    data = (folder / MANIFEST).read_bytes()
    row = json.loads(data)
    return Release(row["version"], row["space_id"], str(folder), hashlib.sha256(data).hexdigest(), "serving", 1.0, "", 1, "test", "")


def infinite_residuals(folder: Path) -> None:
    (folder / RESIDUALS).write_bytes(pack_residuals(np.array([1], np.uint64), np.full((1, 64), np.inf)))


def nan_weights(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        model = onnx.load(str(folder / name))
        tensor = next(t for t in model.graph.initializer if numpy_helper.to_array(t).ndim == 2)
        value = numpy_helper.to_array(tensor).copy()
        value[0, 0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        onnx.save(model, str(folder / name))

    return spoil
