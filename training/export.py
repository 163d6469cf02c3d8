"""A torch encoder -> ONNX -> bundle. Refuses an export that differs from torch.

python -m training.export --out bundles/xs [--preset xs] [--checkpoint weights.pt]
"""

import hashlib
import io
import logging
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import torch
import typer

from encoder.bundle import ONNX, Bundle, BundleError, Manifest, publish
from encoder.features import NUMERIC, TIMES
from encoder.model import PRESETS, SequenceEncoder
from encoder.towers import TowerError, load_tower

PARITY = 1e-4  # largest difference of any output, for any length
INPUTS = ("items", "known", "platform", "behavior", "numeric", "times", "lengths")


def example(users: int, steps: int, dims: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of the model: `users` windows of up to `steps` events, one of them of one event, one of unknown items only."""
    r = np.random.default_rng(seed)
    lengths = r.integers(1, steps + 1, users)
    lengths[0], lengths[-1] = 1, steps
    mask = np.arange(steps) < lengths[:, None]
    known = mask * (r.random((users, steps)) < 0.8)
    known[users // 2] = 0
    items = r.standard_normal((users, steps, dims))
    items *= known[..., None] / np.linalg.norm(items, axis=2, keepdims=True)
    return {
        "items": items.astype(np.float32),
        "known": known.astype(np.float32),
        "platform": r.integers(0, 4, (users, steps)) * mask,
        "behavior": r.integers(0, 14, (users, steps)) * mask,
        "numeric": (r.standard_normal((users, steps, NUMERIC)) * mask[..., None]).astype(np.float32),
        "times": (r.standard_normal((users, steps, TIMES)) * mask[..., None]).astype(np.float32),
        "lengths": lengths.astype(np.int64),
    }


def to_onnx(model: SequenceEncoder, dims: int) -> bytes:
    """The graph, for any number of users and events."""
    batch, steps = torch.export.Dim("users", min=1), torch.export.Dim("events", min=1, max=512)
    arguments = tuple(torch.from_numpy(v) for v in example(3, 5, dims).values())
    shapes = tuple({0: batch} if name == "lengths" else {0: batch, 1: steps} for name in INPUTS)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(), arguments, input_names=list(INPUTS), output_names=["vector"], dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    stream = io.BytesIO()
    program.save(stream)
    return stream.getvalue()


def parity(model: SequenceEncoder, graph: bytes, dims: int) -> float:
    """Largest difference between torch and ONNX Runtime over windows of several lengths."""
    session, worst = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]), 0.0
    for seed, (users, steps) in enumerate(((1, 1), (4, 7), (64, 32), (9, 64), (2, 200))):
        inputs = example(users, steps, dims, seed)
        with torch.inference_mode():
            want = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).numpy()
        worst = max(worst, float(np.abs(session.run(["vector"], inputs)[0] - want).max()))
    return worst


def export(model: SequenceEncoder, out: Path, item_space_id: str, dims: int, max_len: int, name: str) -> Bundle:
    """Write a bundle. Raises BundleError when ONNX and torch differ."""
    graph = to_onnx(model, dims)
    worst = parity(model, graph, dims)
    if worst > PARITY:
        raise BundleError(f"ONNX differs from torch by {worst:.2g}, want at most {PARITY}")
    digest = hashlib.sha256(graph).hexdigest()[:8]
    # Every encoder has a space of its own until vectors of two are shown to compare.
    manifest = Manifest(f"{name}-{digest}", f"{name}-{dims}-{digest}", item_space_id, dims, dims, max_len, made_by="training.export")
    return publish(out, manifest, {ONNX: graph})


def main(
    out: Annotated[Path, typer.Option(help="Folder of the new bundle")],
    preset: str = "xs",
    checkpoint: Annotated[
        Path | None, typer.Option(help="State dict of a SequenceEncoder; the untrained one, equal to the baseline, without")
    ] = None,
    tower: str = "static",
    max_len: int = 32,
    seed: int = 0,
) -> None:
    """Export an encoder."""
    try:
        items = load_tower(tower)
        if preset not in PRESETS:
            raise BundleError(f"--preset {preset}: want one of {', '.join(PRESETS)}")
        torch.manual_seed(seed)
        model = SequenceEncoder(items.dims, PRESETS[preset])
        if checkpoint is not None:
            model.load_state_dict(torch.load(checkpoint, weights_only=True))
        bundle = export(model, out, items.space_id, items.dims, max_len, preset)
    except (BundleError, TowerError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"{bundle.folder}: {bundle.manifest.version}, {bundle.onnx.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    typer.run(main)
