"""Size, speed and metric of compressed variants (int8, fewer channels) of an encoder, made by the retraining's own steps and gate."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import record
from encoder.recipe import Compress, GateRules, Recipe
from streams.core.settings import load
from streams.demo.world_files import write_world
from training.job import Job, Retraining
from training.retrain import retrain

EVENTS, USERS, END_MS = 60_000, 1500, 1_760_000_000_000
RECIPE = Recipe(preset="s", dims=64, max_len=32, time=False, negatives=0, batch_users=64, batch_events=2048, lr=2e-3, ema=0.99, epochs=10,
                precision="no", log_to="none", threads=1)  # fmt: skip
VARIANTS: dict[str, tuple[Compress, float]] = {
    "int8": ("int8", 0.5),
    "half the channels": ("pruned", 0.5),
    "a quarter of the channels": ("pruned", 0.75),
}


def run(folder: Path, data: Path, serving: str, compress: Compress = "", prune: float = 0.5, epochs: int = 3) -> dict[str, Any]:
    """Do one run. Returns the figures of the step `evaluate`, with the gate's findings."""
    folder.mkdir()
    asked = Retraining(serving=serving, rules=GateRules(cold_loss=0.1), compress=compress, prune=prune, epochs=epochs, lr=5e-4)
    platforms = load(data / "currents.toml").platforms
    judged = retrain(Job(data=str(data), platforms=platforms, recipe=RECIPE, retrain=asked), folder, lambda line: print(line, flush=True))
    figures: dict[str, Any] = json.loads((folder / "evaluate.json").read_text())
    return figures | {"refused": judged["refused"]}


def main() -> None:
    """Train an encoder on the synthetic world and make its variants."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=EVENTS)
    events = parser.parse_args().events
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as at:
        data = Path(at) / "data"
        write_world(data, events, USERS, 7, 60, end_ms=END_MS)
        whole = run(Path(at) / "whole", data, "baseline", epochs=RECIPE.epochs)
        everything = whole["slices"]["all"]
        figures["float32, whole"] = {
            "NDCG@10": round(everything["candidate"], 4),
            "MB": round(whole["size_mb"], 2),
            "ms": round(whole["latency_ms"], 1),
        }
        for name, (kind, share) in VARIANTS.items():
            found = run(Path(at) / name.replace(" ", "-"), data, str(Path(at) / "whole" / "bundle"), kind, share)
            d = found["slices"]["all"]["difference"]
            figures[name] = {
                "NDCG@10": round(found["slices"]["all"]["candidate"], 4),
                "difference": f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})",
                "MB": round(found["size_mb"], 2),
                "ms": round(found["latency_ms"], 1),
                "beside ms": round(found["serving_latency_ms"], 1),
                "gate": "passed" if found["refused"] is None else found["refused"].split(":")[0],
            }
    note = (
        f"the synthetic world, {events:,} events, preset S, L = 32, {RECIPE.epochs} epochs; ms for 64 full windows, one thread, least of seven, the "
        "whole one's timed beside it in the same process; pruned ones fine-tuned for 3 epochs; the newest tenth"
    )
    record("compress", figures, "NDCG@10, paired 95 % interval; MB; ms", note)


if __name__ == "__main__":
    main()
