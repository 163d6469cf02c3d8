"""Quality and speed of the sequence encoder on research data, which is read in place: `python -m benchmarks.encoder QUESTION …`."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import encoder_parts
from benchmarks.research import food_kitchen, ml1m
from benchmarks.runs import FOOD, ML1M, SEED, by_platform, figure, note, run
from encoder.base import Encoder
from encoder.config import PRESETS, preset
from encoder.features import ItemTable, padded
from encoder.model import SequenceEncoder
from encoder.onnx_encoder import OnnxEncoder
from encoder.torch_encoder import TorchEncoder
from schemas.windows import DTYPE, NO_DWELL
from training.evaluate import rank
from training.export import export
from training.metrics import METRICS
from training.scorers import decayed_mean
from training.splits import leave_one_out

DIMS = 192  # dims of the shipped tower


def films() -> None:
    """Measure on MovieLens-1M, leave-one-out."""
    log = ml1m()
    split = leave_one_out(log)
    one = run("ml1m", log, split, ML1M)
    day0 = rank(decayed_mean(), log, split.test)
    about = (
        f"leave-one-out, all {log.catalogue.size - 1} films ranked but those seen, preset s, L = 200, full softmax, "
        f"{len(one.trained.history)} epochs, {one.seconds / 60:.0f} min on one of 2 shared cores; decayed mean: HR@10 {(day0.rank <= 10).mean():.4f}"
    )
    note("ml1m", about, ml1m_hr10=figure(one.found.rank <= 10), ml1m_ndcg10=figure(METRICS["ndcg@10"](one.found.rank)))


def food() -> None:
    """Measure on food_kitchen, both platforms jointly."""
    log, split = food_kitchen()
    one = run("food", log, split, FOOD)
    hits, ndcg = by_platform(log, split, one.found.rank, "hr@10"), by_platform(log, split, one.found.rank, "ndcg@10")
    day0 = by_platform(log, split, rank(decayed_mean(), log, split.test).rank, "hr@10")
    about = (
        f"937 test users, the target's whole platform ranked but items seen, preset s, L = 50, {len(one.trained.history)} epochs, "
        f"{one.seconds / 60:.0f} min on one of 2 shared cores; decayed mean: {day0['food']['value']} / {day0['kitchen']['value']}"
    )
    note("food", about, food_hr10=hits["food"], kitchen_hr10=hits["kitchen"], food_ndcg10=ndcg["food"], kitchen_ndcg10=ndcg["kitchen"])


def speed() -> None:
    """Measure windows a second of every preset with full windows of 32 and 64 events, on two threads, and with torch on a GPU if there is one."""
    found: dict[str, dict[str, int]] = {"onnx": {}, "gpu": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in PRESETS:
            torch.manual_seed(SEED)
            bundle = export(SequenceEncoder(preset(name, DIMS)), Path(folder) / name, "none", name)
            for steps in (32, 64):
                found["onnx"][f"{name} L={steps}"] = windows_per_s(OnnxEncoder(bundle, 2), steps, 512)
                if torch.cuda.is_available():
                    found["gpu"][f"{name} L={steps}"] = windows_per_s(TorchEncoder(bundle), steps, 4096)
    gpu = {"value": found["gpu"].get("s L=64"), "presets": found["gpu"]}
    about = "full windows, from featurized arrays to vectors; preset s, L = 64, two threads; median of several runs; no GPU: not measured, null"
    note("speed", about, onnx_windows_per_s={"value": found["onnx"]["s L=64"], "presets": found["onnx"]}, gpu_windows_per_s=gpu)


def windows_per_s(encoder: Encoder, steps: int, users: int, runs: int = 9) -> int:
    """Return the median windows/s of several runs over `users` windows of `steps` events."""
    r = np.random.default_rng(SEED)
    table = ItemTable(DIMS, 5000)
    for key in range(1, 4000):
        table.put(key, r.standard_normal(DIMS).astype(np.float32))
    rows = np.zeros(users * steps, DTYPE)
    rows["item_key"], rows["behavior"] = r.integers(1, 4000, len(rows)), r.integers(1, 14, len(rows))
    rows["platform"], rows["ts_ms"] = r.integers(1, 4, len(rows)), np.tile(np.arange(steps) * 3_600_000, users)
    rows["dwell_ds"], rows["value"] = NO_DWELL, np.nan
    features = padded(rows, table.index(rows["item_key"]), np.full(users, steps))
    took = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        encoder.encode(features, table)
        took.append(time.perf_counter() - began)
    return round(users / float(np.median(took[1:])))


QUESTIONS: dict[str, Callable[[], None]] = {
    "ml1m": films, "food": food, "joint": encoder_parts.joint, "cold": encoder_parts.cold, "stale": encoder_parts.stale,
    "ablation": encoder_parts.ablation, "times": encoder_parts.times, "speed": speed,
}  # fmt: skip

if __name__ == "__main__":
    for question in sys.argv[1:] or QUESTIONS:
        QUESTIONS[question]()
