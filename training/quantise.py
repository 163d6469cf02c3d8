"""int8: a graph with its matrices quantised, released only if its vectors stay and next to nothing is lost on held-out actions.

Vectors: cosine with float32's of at least COSINE. Actions: full ranking through ONNX Runtime, at most LOSS of HR@10 and of NDCG@10 lost.
"""

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from encoder.baseline import l2
from encoder.bundle import BundleError
from encoder.features import UNKNOWN, model_inputs
from training.evaluate import Score, rank
from training.log import EventLog
from training.metrics import METRICS
from training.scorers import newest
from training.splits import Cases

COSINE, LOSS = 0.995, 0.01
CHUNK = 64  # windows of a timed run, as a worker's
RUNS = 15
Inputs = Mapping[str, np.ndarray]


def quantised(graph: bytes) -> bytes:
    """The graph with its matrices in int8, per channel (onnxruntime's dynamic quantisation), the same on every CPU.

    Weights use seven of the eight bits: without VNNI, AVX2 and AVX-512 add pairs of products in 16 bits, which eight would overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load_from_string(graph).graph
    axes = {weights.name: len(weights.dims) for weights in nodes.initializer}
    stacks = [node.name for node in nodes.node if node.op_type == "MatMul" and axes.get(node.input[1], 2) > 2]  # it makes them, but cannot run them
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        source.write_bytes(graph)
        logging.getLogger().setLevel(logging.ERROR)
        quantize_dynamic(source, out, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8, nodes_to_exclude=stacks)
        return out.read_bytes()


def cosine(graph: bytes, other: bytes, batches: Iterable[Inputs]) -> float:
    """Least mean cosine of two graphs' vectors over batches of inputs; windows of unknown items alone do not count."""
    a, b, found = _session(graph), _session(other), []
    for inputs in batches:
        x, y = (_run(s, inputs) for s in (a, b))
        some = x.any(1)
        if some.any():
            found.append(float((l2(x[some]) * l2(y[some])).sum(1).mean()))
    return min(found)


def gated(
    graph: bytes, items: bytes, keys: np.ndarray, residuals: np.ndarray, max_len: int, log: EventLog, some: Cases, examples: Iterable[Inputs]
) -> tuple[bytes, dict[str, float]]:
    """The int8 form of a graph of windows and what it was measured by. Raises BundleError, with the figures, where it loses too much.

    `items`: the graph of items; keys (m,), residuals (m, E): ID residuals; `some`: held-out actions; `examples`: further inputs for the cosine.
    """
    small = quantised(graph)
    vectors = _projected(items, keys, residuals, log)
    real = _inputs(log, some.take(np.arange(min(len(some), CHUNK))), vectors, max_len)
    least = cosine(graph, small, [*examples, real])
    if least < COSINE:
        raise BundleError(f"int8: cosine {least:.4f} with float32, want at least {COSINE}")
    ranks = {name: rank(_scores(g, vectors, max_len), log, some).rank for name, g in (("float32", graph), ("int8", small))}
    found = {m: {name: float(METRICS[m](r).mean()) for name, r in ranks.items()} for m in ("hr@10", "ndcg@10")}
    if any(of["int8"] < (1 - LOSS) * of["float32"] for of in found.values()):
        said = ", ".join(f"{m.upper()} {of['int8']:.4f} instead of {of['float32']:.4f}" for m, of in found.items())
        raise BundleError(f"int8: {said} on {len(some)} test targets; want at most {LOSS:.0%} less than float32")
    measured = {m: of["int8"] for m, of in found.items()} | {f"float32 {m}": of["float32"] for m, of in found.items()}
    return small, measured | {"int8 cosine": least, "int8 time / float32 time": slowdown(small, graph, real)}


def slowdown(graph: bytes, other: bytes, inputs: Inputs) -> float:
    """Time that one graph takes for a batch, as a share of the other's; medians of turns, one thread."""
    sessions, took = (_session(graph), _session(other)), ([], [])  # type: tuple[Any, Any], tuple[list[float], list[float]]
    for _ in range(RUNS):
        for s, t in zip(sessions, took, strict=True):
            begin = time.perf_counter()
            _run(s, inputs)
            t.append(time.perf_counter() - begin)
    return float(np.median(took[0]) / np.median(took[1]))


def _scores(graph: bytes, vectors: np.ndarray, max_len: int) -> Score:
    session = _session(graph)
    return lambda log, some: _run(session, _inputs(log, some, vectors, max_len)) @ vectors.T


def _inputs(log: EventLog, some: Cases, vectors: np.ndarray, max_len: int) -> dict[str, np.ndarray]:
    inputs = model_inputs(newest(log, some, max_len))
    return {**inputs, "items": vectors[inputs["items"]]}


def _projected(graph: bytes, keys: np.ndarray, residuals: np.ndarray, log: EventLog) -> np.ndarray:
    """(N, E) the catalogue in the interest space; row UNKNOWN is zero."""
    size, table = log.catalogue.size, log.catalogue.table
    own = np.zeros((size, residuals.shape[1]), np.float32)
    own[table.index(keys)] = residuals
    own[UNKNOWN] = 0
    out: np.ndarray = _session(graph).run(["projected"], {"vectors": table.vectors[:size], "residuals": own})[0]
    out[UNKNOWN] = 0
    return out


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as a worker runs it
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: Inputs) -> np.ndarray:
    wanted = {i.name for i in session.get_inputs()}
    out: np.ndarray = session.run(["vector"], {k: v for k, v in inputs.items() if k in wanted})[0]
    return out
