"""Compares Currents with Quix Streams, stock Faust and a bare confluent-kafka loop: same Kafka, events, fold and bytes, an encoder without cost."""

import argparse

from benchmarks.common import record
from benchmarks.systems.compare import BATCHED, compare

N, USERS, RUNS = 200_000, 20_000, 3
FAUST = 0.1  # share of the events for stock Faust, which is slow


def main() -> None:
    """Record medians. The order of systems is the same in every turn, so that none is always first after a start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=N)
    parser.add_argument("--runs", type=int, default=RUNS)
    asked = parser.parse_args()
    systems = {
        "currents": {}, "quix": {}, "stock_faust": {"events": round(asked.events * FAUST)}, "bare_loop": {}, "quix_batched": {"batch": BATCHED},
    }  # fmt: skip
    found = compare(systems, asked.events, USERS, asked.runs)
    figures = {name: row["events_per_s"] for name, row in found.items()}
    ratios = {f"currents / {name}": figures["currents"] / figures[name] for name in figures if name != "currents"}
    del figures["quix_batched"]  # Quix Streams with batches made by hand: reported in the details only
    note = (
        f"stub encoder, no portrait, {asked.events:,} events of {USERS:,} users, {asked.runs} runs in turn, each checked; "
        f"stock Faust on a tenth of the events; Quix Streams 3.28 at least once, one profile at a time, its rows not awaited; "
        "goals: ≥ 2 × quix, ≥ .6 × bare_loop"
    )
    record("plumbing", figures, "events/s, catching up", note, bare=True, ratios={k: round(v, 2) for k, v in ratios.items()}, systems=found)


if __name__ == "__main__":
    main()
