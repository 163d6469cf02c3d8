"""What a worker asks of an encoder, and which one it gets."""

from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from encoder.baseline import Baseline
from encoder.bundle import Bundle, BundleError, open_bundle
from encoder.features import UNKNOWN, Features, ItemTable, model_inputs

BUCKETS = (8, 16, 32, 64, 128, 256, 512)  # windows up to these lengths are padded to the longest of their bucket
CHUNK = 64  # windows of one run: larger ones fall out of the cache


class Encoder(Protocol):
    """Windows and item vectors in, L2-normalised vectors out. B users, D dims of an item vector, dims of the interest vector."""

    version: str
    """What made a vector: `baseline-…` or a bundle's version."""
    space_id: str
    """Vectors are comparable only within one space."""
    dims: int
    max_len: int
    """How many of the newest events it looks at."""

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        """-> (B, dims) float32, L2-normalised; a zero row where every item is unknown."""
        ...

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """(n, D) item vectors -> (n, dims) float32 in the space of the interest vectors, L2-normalised."""
        ...


def load_encoder(name: str, item_space_id: str, item_dims: int, threads: int = 1) -> Encoder:
    """`baseline`, or the folder of a bundle that fits the tower. Raises BundleError saying what was wanted and what was there."""
    if name == "baseline":
        return Baseline(item_dims, item_space_id)
    bundle = open_bundle(Path(name))
    manifest = bundle.manifest
    for what, wanted, got in (("item_dims", item_dims, manifest.item_dims), ("item_space_id", item_space_id, manifest.item_space_id)):
        if wanted != got:
            raise BundleError(f"bundle {name}: {what} = {got!r}, but the tower (encoding.tower) makes {wanted!r}")
    return OnnxEncoder(bundle, threads)


class OnnxEncoder:
    """A bundle's graph on ONNX Runtime, CPU. Windows of like length go together, CHUNK at a time."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        m = bundle.manifest
        self.version, self.space_id, self.dims, self.max_len = m.version, m.space_id, m.dims, m.max_len
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the other core folds and sends meanwhile
        try:
            self._session = onnxruntime.InferenceSession(str(bundle.onnx), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises types of its own, unexported
            raise BundleError(f"{bundle.onnx}: {error}") from None
        self._inputs = {i.name for i in self._session.get_inputs()}

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        """-> (B, dims) float32, L2-normalised; a zero row where every item is unknown."""
        features = features.newest(self.max_len)
        out = np.zeros((len(features.lengths), self.dims), np.float32)
        for bucket in BUCKETS:
            here = np.flatnonzero((features.lengths > bucket // 2 if bucket > BUCKETS[0] else True) & (features.lengths <= bucket))
            for a in range(0, len(here), CHUNK):
                rows = here[a : a + CHUNK]
                inputs = model_inputs(features.take(rows), table)
                out[rows] = self._session.run(["vector"], {k: v for k, v in inputs.items() if k in self._inputs})[0]
        out[~(features.items != UNKNOWN).any(1)] = 0
        return out

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Item vectors are in the space of the interest vectors already: the graph's output is trained towards them."""
        return vectors
