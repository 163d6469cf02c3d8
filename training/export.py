"""A torch encoder -> ONNX -> bundle. Refuses an export that differs from torch."""

import hashlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import load, save

from encoder.bundle import CONFIG, ITEMS, ONNX, RESIDUALS, WEIGHTS, Bundle, BundleError, Manifest, pack_residuals, publish
from encoder.features import NUMERIC, TIMES
from encoder.layers import LONGEST
from encoder.model import SequenceEncoder
from training.log import EventLog
from training.quantise import gated
from training.splits import Cases

PARITY = 1e-4  # largest difference of any output, for any length
INPUTS = ("items", "known", "platform", "behavior", "numeric", "times", "seconds", "lengths")
LENGTHS = ((1, 1), (4, 7), (64, 32), (9, 64), (2, 200))
"""(users, events) of the windows that parity is checked on."""


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
        "seconds": (r.exponential(3e4, (users, steps)).cumsum(1) * mask).astype(np.float32),
        "lengths": lengths.astype(np.int64),
    }


def examples(model: SequenceEncoder) -> Iterator[dict[str, np.ndarray]]:
    """Random inputs of several lengths, as far as the layers have positions."""
    longest = getattr(model.body, "longest", LONGEST)
    return (example(users, steps, model.config.dims, seed) for seed, (users, steps) in enumerate(LENGTHS) if steps <= longest)


def to_onnx(model: SequenceEncoder) -> bytes:
    """The graph of windows, for any number of users and events."""
    batch, steps = torch.export.Dim("users", min=1), torch.export.Dim("events", min=1, max=LONGEST)
    arguments = tuple(torch.from_numpy(v) for v in example(3, 5, model.config.dims).values())
    shapes = tuple({0: batch} if name == "lengths" else {0: batch, 1: steps} for name in INPUTS)
    return _graph(model, arguments, list(INPUTS), "vector", shapes)


def items_to_onnx(model: SequenceEncoder) -> bytes:
    """The graph of items, for any number of them."""
    n = torch.export.Dim("items", min=1)
    arguments = (torch.randn(3, model.config.item_dims), torch.randn(3, model.config.dims))
    return _graph(model.projector, arguments, ["vectors", "residuals"], "projected", ({0: n}, {0: n}))


def _graph(module: torch.nn.Module, arguments: Any, inputs: list[str], output: str, shapes: Any) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(), arguments, input_names=inputs, output_names=[output], dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    stream = io.BytesIO()
    program.save(stream)
    return without_notes(stream.getvalue())


def without_notes(graph: bytes) -> bytes:
    """A graph without the exporter's notes on every node: they tell the folders of the machine, which are nobody's business and change the digest."""
    proto = onnx.load_from_string(graph)
    for noted in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del noted.metadata_props[:]
        noted.ClearField("doc_string")
    for function in proto.functions:
        for noted in (function, *function.node, *function.value_info):
            del noted.metadata_props[:]
            noted.ClearField("doc_string")
    return bytes(proto.SerializeToString())


def parity(model: SequenceEncoder, graph: bytes) -> float:
    """Largest difference between ONNX Runtime, torch, and torch without the last-only short cut, over windows of several lengths."""
    session, worst = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]), 0.0
    model = model.eval()
    for inputs in examples(model):
        users = len(inputs["lengths"])
        tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
        with torch.inference_mode():
            want = model(**tensors).numpy()
            every = model.states(**tensors)[1][torch.arange(users), tensors["lengths"] - 1].numpy()
        got = session.run(["vector"], inputs)[0]
        worst = float(np.max([worst, np.abs(got - want).max(), np.abs(every - want).max()]))  # NaN stays
    return worst


def export(
    model: SequenceEncoder,
    out: Path,
    item_space_id: str,
    name: str,
    keys: np.ndarray | None = None,
    metrics: dict[str, float] | None = None,
    int8: tuple[EventLog, Cases] | None = None,
    weights: bool = True,
    space_id: str = "",
) -> Bundle:
    """Write a bundle; `keys` are the item keys of the ID residuals in order; `int8`: in int8, if it is as good on these held-out actions.

    `space_id`: of a release whose vectors this one's compare with (training.align); empty: a space of its own.

    Raises BundleError when ONNX and torch differ, or int8 and float32.
    """
    model, config = model.cpu().float().eval(), model.config
    keys = np.zeros(0, np.uint64) if keys is None else keys
    if len(keys) != config.residuals:
        raise BundleError(f"{len(keys)} item keys for {config.residuals} ID residuals")
    model.round_residuals()
    graph, items = to_onnx(model), items_to_onnx(model)
    worst = parity(model, graph)
    if not worst <= PARITY:  # nor is it if it is no number
        raise BundleError(f"ONNX differs from torch by {worst:.2g}, want at most {PARITY}")
    residuals, measured = model.residual.weight.detach().numpy()[1:], dict(metrics or {})
    if int8:
        graph, more = gated(graph, items, keys, residuals, config.max_len, *int8, examples(model))
        measured |= {k: round(v, 4) for k, v in more.items()}
    files = {ONNX: graph, ITEMS: items, RESIDUALS: pack_residuals(keys, residuals)}
    if weights:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            files |= {name: (Path(folder) / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        files[WEIGHTS] = save({k: v for k, v in load(files[WEIGHTS]).items() if k != "residual.weight"})
    digest = hashlib.sha256(graph + items + files[RESIDUALS]).hexdigest()[:8]
    # Every encoder has a space of its own until vectors of two are shown to compare.
    manifest = Manifest(
        f"{name}-{digest}", space_id or f"{name}-{config.dims}-{digest}", item_space_id, config.dims, config.item_dims, config.max_len,
        made_by="training.export", metrics=measured,
    )  # fmt: skip
    return publish(out, manifest, files)
