"""What a worker asks of an encoder, and which one it gets: the baseline, a bundle on ONNX Runtime, or a bundle on torch where there is a GPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import onnxruntime

from encoder.baseline import Baseline
from encoder.bundle import WEIGHTS, Bundle, BundleError, open_bundle, read_residuals
from encoder.features import UNKNOWN, Features, ItemTable, model_inputs

BUCKETS = (8, 16, 32, 64, 128, 256, 512)  # windows up to these lengths are padded to the longest of their bucket
CHUNK = 64  # windows of one run: larger ones fall out of the cache
LEAST = 8  # windows for which a second thread is worth it
ITEMS_AT_ONCE = 4096
Device = Literal["auto", "cpu", "cuda"]


class Encoder(Protocol):
    """Windows and item vectors in, L2-normalised vectors out. B users, D dims of a tower's vector, dims of the interest space."""

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

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(n, D) tower vectors and (n,) uint64 item keys, 0 for none -> (n, dims) float32 in the interest space, L2-normalised."""
        ...

    @property
    def projected(self) -> "Projected | None":
        """The item table in the interest space; None where that is the tower's."""
        ...


def load_encoder(name: str, item_space_id: str, item_dims: int, threads: int = 1, device: Device = "auto") -> Encoder:
    """`baseline`, `demo`, or the folder of a bundle. Raises BundleError where it does not fit the tower.

    `auto` is torch where there is a GPU, the extra `gpu` and a bundle with torch weights, else ONNX Runtime.
    """
    if name == "baseline":
        return Baseline(item_dims, item_space_id)
    bundle = open_bundle(name)
    manifest = bundle.manifest
    for what, wanted, got in (("item_dims", item_dims, manifest.item_dims), ("item_space_id", item_space_id, manifest.item_space_id)):
        if wanted != got:
            raise BundleError(f"bundle {name}: {what} = {got!r}, but the tower (encoding.tower) makes {wanted!r}")
    if device == "cuda" or (device == "auto" and WEIGHTS in manifest.files and _has_gpu()):
        from encoder.torch_encoder import TorchEncoder

        return TorchEncoder(bundle)
    return OnnxEncoder(bundle, threads)


def _has_gpu() -> bool:
    # The driver's file, not torch: importing torch takes seconds and hundreds of MB, and most workers have no use for it.
    if not Path("/dev/nvidiactl").exists():
        return False
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


class Part(NamedTuple):
    """Items to be projected, copied from a table that may be written to meanwhile."""

    rows: np.ndarray  # (n,) of the table
    vectors: np.ndarray  # (n, D) of the tower
    keys: np.ndarray  # (n,) uint64


class Projected:
    """The item table in the interest space, row by row, brought up to date when the table was written to."""

    def __init__(self, project: Callable[[np.ndarray, np.ndarray], np.ndarray], dims: int) -> None:
        self._project, self._dims = project, dims
        self._begin(ItemTable(0, 1))

    def _begin(self, table: ItemTable) -> None:
        self._table, self._rows = table, np.zeros((0, self._dims), np.float32)
        self._seen = self._until = 0  # writes of the table that are in, and that are in once nothing is left of `_todo`
        self._todo = np.zeros(0, np.int64)

    def of(self, table: ItemTable) -> np.ndarray:
        """(N, dims); row UNKNOWN and forgotten items are zero."""
        while (part := self.next(table)) is not None:
            self.put(part)
        return self._rows

    def next(self, table: ItemTable) -> Part | None:
        """What is to be projected next, None where nothing is. Call it where the table is not written to; `put` may follow anywhere."""
        if table is not self._table:
            self._begin(table)
        if len(self._rows) < len(table.vectors):
            grown = np.zeros((len(table.vectors), self._dims), np.float32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        if not len(self._todo) and self._seen < table.writes:
            self._todo, self._until = np.flatnonzero(table.written > self._seen), table.writes
        at = self._todo[:ITEMS_AT_ONCE]
        return Part(at, table.vectors[at], table.keys[at]) if len(at) else None

    def put(self, part: Part) -> np.ndarray:
        """Project a part into its rows; returns them. A part that failed is the next one again."""
        made: np.ndarray = self._project(part.vectors, part.keys) * part.vectors.any(1, keepdims=True)
        self._rows[part.rows] = made
        self._todo = self._todo[len(part.rows) :]
        if not len(self._todo):
            self._seen = self._until
        return made


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


def buckets(lengths: np.ndarray, chunk: int) -> list[np.ndarray]:
    """(B,) lengths -> indices of windows that go together: of one bucket, at most `chunk` at once."""
    bucket = np.searchsorted(BUCKETS, lengths)
    found = (np.flatnonzero(bucket == b) for b in np.unique(bucket))
    return [here[a : a + chunk] for here in found for a in range(0, len(here), chunk)]


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


def residual_table(bundle: Bundle) -> ItemTable:
    """The ID residuals by item key; row UNKNOWN is zero. Raises BundleError."""
    keys, residuals = read_residuals(bundle.folder, bundle.manifest.dims)
    if not np.isfinite(residuals).all():
        raise BundleError(f"{bundle.folder}: {int((~np.isfinite(residuals)).any(1).sum())} residuals are not finite")
    return ItemTable.of(keys, residuals)
