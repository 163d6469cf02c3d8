"""A bundle on torch: bf16 and one compiled graph per bucket on a GPU, plain float32 elsewhere. Needs the extra `gpu`."""

import numpy as np
import torch

from encoder.base import BUCKETS, Projected, buckets, residual_table
from encoder.bundle import CONFIG, WEIGHTS, Bundle, BundleError
from encoder.features import UNKNOWN, Features, ItemTable, model_inputs
from encoder.model import SequenceEncoder

CHUNK = 4096  # windows of one run on a GPU


class TorchEncoder:
    """Static shapes: every run is CHUNK windows of a bucket's length, so that a CUDA graph is captured once per bucket."""

    def __init__(self, bundle: Bundle, device: str = "cuda") -> None:
        m = bundle.manifest
        if not {CONFIG, WEIGHTS} <= m.files.keys():
            raise BundleError(f"bundle {bundle.folder}: has no {WEIGHTS}; a GPU worker needs it, a CPU worker does not (encoding.device)")
        self.version, self.space_id, self.dims, self.max_len = m.version, m.space_id, m.dims, m.max_len
        self.device = torch.device(device)
        self.model = SequenceEncoder.from_pretrained(str(bundle.folder)).to(self.device).eval()
        self._fast = self.device.type == "cuda"
        # reduce-overhead is inductor with CUDA graphs; a few thousand small kernels would otherwise wait for the CPU.
        self._run = torch.compile(self.model, mode="reduce-overhead", dynamic=False) if self._fast else self.model
        self._residuals = residual_table(bundle)
        self.projected = Projected(self.project, self.dims)
        self._resident: tuple[int, torch.Tensor] | None = None

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        """-> (B, dims) float32, L2-normalised; a zero row where every item is unknown."""
        features, items = features.newest(self.max_len), self._on_device(table)
        out = np.zeros((len(features.lengths), self.dims), np.float32)
        for rows in buckets(features.lengths, CHUNK):
            taken = features.take(rows)
            steps = min(b for b in BUCKETS if b >= taken.items.shape[1])
            out[rows] = self._one(model_inputs(taken), items, steps)[: len(rows)]
        out[~(features.items != UNKNOWN).any(1)] = 0
        return out

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(n, D) tower vectors and (n,) uint64 item keys, 0 for none -> (n, dims) float32 in the interest space, L2-normalised."""
        residuals = torch.from_numpy(self._residuals.vectors[self._residuals.index(keys)]).to(self.device)
        with torch.inference_mode():
            return np.asarray(self.model.projector(torch.as_tensor(vectors, dtype=torch.float32, device=self.device), residuals).cpu())

    def _on_device(self, table: ItemTable) -> torch.Tensor:
        rows = self.projected.of(table)
        if self._resident is None or self._resident[0] != table.writes or len(self._resident[1]) != len(rows):
            self._resident = table.writes, torch.from_numpy(rows).to(self.device)
        return self._resident[1]

    def _one(self, inputs: dict[str, np.ndarray], items: torch.Tensor, steps: int) -> np.ndarray:
        """Model inputs of b windows, padded on the GPU to (CHUNK, steps) -> (b or CHUNK, dims)."""
        tensors = {}
        for name, value in inputs.items():
            whole = value
            if self._fast:
                shape = (CHUNK, *((steps,) if value.ndim > 1 else ()), *value.shape[2:])
                whole = np.ones(shape, value.dtype) if name == "lengths" else np.zeros(shape, value.dtype)
                whole[tuple(slice(n) for n in value.shape)] = value
            tensors[name] = torch.from_numpy(whole).to(self.device, non_blocking=True)
        tensors["items"] = items[tensors["items"].long()]
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._fast):
            return np.asarray(self._run(**tensors).float().cpu())
