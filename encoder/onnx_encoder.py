"""A bundle on ONNX Runtime, CPU."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from encoder.base import Projected, buckets, residual_table
from encoder.bundle import Bundle, BundleError
from encoder.features import UNKNOWN, Features, ItemTable, model_inputs

CHUNK = 64  # windows of one run: larger ones fall out of the cache
LEAST = 8  # windows for which a second thread is worth it


class OnnxEncoder:
    """A bundle's graphs on ONNX Runtime, CPU. Windows of like length go together, CHUNK at a time, as many chunks at once as there are threads.

    A chunk is one thread's: ONNX Runtime's own threads share out every small product by itself, and wait for each other after each.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        m = bundle.manifest
        self.version, self.space_id, self.dims, self.max_len = m.version, m.space_id, m.dims, m.max_len
        self._windows, self._items = session(bundle.onnx, 1), session(bundle.items, threads)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "windows") if threads > 1 else None
        self._inputs = {i.name for i in self._windows.get_inputs()}
        self._residuals = residual_table(bundle)
        self.projected = Projected(self.project, self.dims)

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        """-> (B, dims) float32, L2-normalised; a zero row where every item is unknown."""
        features, items = features.newest(self.max_len), self.projected.of(table)
        out = np.zeros((len(features.lengths), self.dims), np.float32)

        def run(rows: np.ndarray) -> None:
            inputs: dict[str, Any] = model_inputs(features.take(rows))
            inputs["items"] = items[inputs["items"]]
            out[rows] = self._windows.run(["vector"], {k: v for k, v in inputs.items() if k in self._inputs})[0]

        share = -(-len(features.lengths) // self._threads)
        chunks = buckets(features.lengths, min(CHUNK, max(LEAST, share)))
        list(self._pool.map(run, chunks) if self._pool and len(chunks) > 1 else map(run, chunks))
        out[~(features.items != UNKNOWN).any(1)] = 0
        return out

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(n, D) tower vectors and (n,) uint64 item keys, 0 for none -> (n, dims) float32 in the interest space, L2-normalised."""
        if not len(vectors):
            return np.zeros((0, self.dims), np.float32)
        residuals = self._residuals.vectors[self._residuals.index(keys)]
        out: np.ndarray = self._items.run(["projected"], {"vectors": vectors.astype(np.float32), "residuals": residuals})[0]
        return out


def session(path: Path, threads: int) -> Any:
    """ONNX Runtime on a graph. Raises BundleError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the other core folds and sends meanwhile
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own, unexported
        raise BundleError(f"{path}: {error}") from None
