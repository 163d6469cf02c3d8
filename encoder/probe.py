"""Smoke test of an encoder before it serves: encodes windows of every platform, behavior and length, and projects items."""

import numpy as np

from encoder.base import BUCKETS, Encoder
from encoder.bundle import BundleError
from encoder.features import ItemTable, featurize
from schemas.events import BEHAVIORS
from schemas.windows import DTYPE, NO_DWELL, PLATFORMS, VERSION

ITEMS = 97
NORM = 1e-2  # how far from 1 the length of a vector may be


def probe(encoder: Encoder, item_dims: int) -> None:
    """Encode and project made-up windows and items; a runtime that compiles or allocates on first use has done so. Raises BundleError."""
    table, windows = examples(item_dims, encoder.max_len)
    name, known = f"bundle {encoder.version}", slice(1, table.size)
    try:
        vectors = encoder.encode(featurize(windows, table, encoder.max_len), table)
        items = encoder.project(table.vectors[known], table.keys[known])
    except Exception as error:  # ONNX Runtime and torch raise many types
        raise BundleError(f"{name}: does not run: {type(error).__name__}: {' '.join(str(error).split()):.300}") from None
    for what, found, n in (("interest vectors", vectors, len(windows)), ("item vectors", items, ITEMS)):
        if found.shape != (n, encoder.dims):
            raise BundleError(f"{name}: makes {what} of shape {found.shape}, want ({n}, {encoder.dims}) as its manifest says")
        if not np.isfinite(found).all():
            raise BundleError(f"{name}: {int((~np.isfinite(found)).any(1).sum())} of {n} {what} are not finite")
        lengths = np.linalg.norm(found, axis=1)
        if (np.abs(lengths - 1) > NORM).any():
            raise BundleError(f"{name}: makes {what} of length {lengths.min():.3g} to {lengths.max():.3g}, want 1")


def examples(item_dims: int, max_len: int) -> tuple[ItemTable, list[bytes]]:
    """Items, and a window of each platform and bucket of lengths; all behaviors, values and dwells there and not there, a known item in each."""
    r = np.random.default_rng(0)
    table = ItemTable(item_dims)
    for key in range(1, ITEMS + 1):
        vector = r.standard_normal(item_dims).astype(np.float32)
        table.put(key, vector / np.linalg.norm(vector))
    windows = []
    for platform in range(PLATFORMS):
        bucket = min(BUCKETS[platform % len(BUCKETS)], max_len)
        rows = np.zeros(bucket, DTYPE)
        rows["ts_ms"] = 1_700_000_000_000 + r.exponential(1e7, bucket).cumsum().astype(np.int64)
        rows["item_key"] = r.integers(1, ITEMS + 20, bucket)  # some are not known
        rows["item_key"][-1] = 1 + platform % ITEMS
        rows["platform"], rows["behavior"] = platform, (np.arange(bucket) + platform) % len(BEHAVIORS)
        rows["dwell_ds"] = np.where(r.random(bucket) < 0.5, NO_DWELL, 300)
        rows["value"] = np.where(r.random(bucket) < 0.5, np.nan, r.standard_normal(bucket))
        windows.append(VERSION + rows.tobytes())
    return table, windows
