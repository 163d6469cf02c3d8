"""Selects a worker's encoder: the baseline, a bundle on ONNX Runtime, or a bundle on torch where there is a GPU."""

from pathlib import Path
from typing import Literal

from encoder.base import Encoder
from encoder.baseline import Baseline
from encoder.bundle import WEIGHTS, BundleError, open_bundle
from encoder.onnx_encoder import OnnxEncoder

Device = Literal["auto", "cpu", "cuda"]


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
