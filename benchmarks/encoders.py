"""The comparison of benchmarks.plumbing with a sequence encoder of preset S. Quix Streams encodes one event at a time or, batched by hand, many."""

import argparse
import tempfile
from pathlib import Path

from benchmarks.common import record
from benchmarks.job import fresh
from benchmarks.systems.compare import BATCHED, compare

N, USERS, RUNS, LEN = 60_000, 3_000, 3, 32


def main() -> None:
    """Record medians of several runs; the systems run in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=N)
    parser.add_argument("--runs", type=int, default=RUNS)
    asked = parser.parse_args()
    systems = {"currents": {}, "quix": {}, "quix_batched": {"batch": BATCHED}, "bare_loop": {}}
    with tempfile.TemporaryDirectory() as folder:
        found = compare(systems, asked.events, USERS, asked.runs, fresh("s", Path(folder), LEN))
    figures = {name: row["events_per_s"] for name, row in found.items()}
    ratios = {f"currents / {name}": round(figures["currents"] / figures[name], 2) for name in figures if name != "currents"}
    note = (
        f"preset S, L = {LEN}, fresh weights, one ONNX Runtime thread, no portrait, {asked.events:,} events of {USERS:,} users, "
        f"{asked.runs} runs in turn, each checked; quix: encodes per event, for it has no batches; "
        f"quix_batched: {BATCHED} windows by hand, what waits at a commit unprotected; "
        "goals: ≥ 5 × quix, ≥ 2 × quix_batched"
    )
    record("encoders", figures, "events/s, catching up", note, bare=True, ratios=ratios, systems=found)


if __name__ == "__main__":
    main()
