"""The decayed mean of item vectors: useful on day 0, the fallback, and what a trained encoder must beat."""

import numpy as np

from encoder.features import UNKNOWN, Features, ItemTable
from schemas.events import BEHAVIOR_CODE

CHUNK = 64  # users at once, so that the gathered vectors stay in the cache
HALF_LIFE = 3.0  # events, not time: measured best on whitened static vectors (docs/log.md)


class Baseline:
    """u = Σ 0.5^(k / half_life) · sign(behavior) · v, k = 0 for the newest event; then L2."""

    projected = None  # the interest space is the tower's

    def __init__(self, dims: int, space_id: str, max_len: int = 32, half_life: float = HALF_LIFE) -> None:
        self.dims, self.space_id, self.max_len = dims, space_id, max_len
        self.version = f"baseline-{half_life:g}"
        self._decay = np.exp2(-np.arange(max_len) / half_life).astype(np.float32)
        self._sign = np.ones(256, np.float32)
        self._sign[BEHAVIOR_CODE["hide"]] = -1.0

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        """-> (B, dims) float32, L2-normalised; a zero row where every item is unknown."""
        features = features.newest(self.max_len)
        items, steps = features.items, features.items.shape[1]
        back = features.lengths[:, None] - 1 - np.arange(steps)  # (B, T): 0 for the newest
        weight = self._decay[np.maximum(back, 0)] * self._sign[features.rows["behavior"]]
        weight *= features.mask & (items != UNKNOWN)
        out = np.empty((len(items), table.dims), np.float32)
        for a in range(0, len(items), CHUNK):
            part = slice(a, a + CHUNK)
            out[part] = (weight[part, None, :] @ table.vectors[items[part]])[:, 0]  # (b, 1, T) @ (b, T, D)
        return l2(out)

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Item vectors are already in the space of the interest vectors."""
        return vectors


def l2(vectors: np.ndarray) -> np.ndarray:
    """(n, d) -> rows of length 1; zero rows stay zero."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: np.ndarray = np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0)
    return out
