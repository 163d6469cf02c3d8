"""Events/s of the whole path in one process that catches up: platform JSON → unified → windows → baseline encoder → profiles."""

import tempfile
from pathlib import Path

import uvloop

from benchmarks.common import PARTITIONS, kafka, median, record
from benchmarks.job import fill, measure

N, USERS, RUNS = 200_000, 20_000, 3


def sustained(bootstrap: str, filled: Path | None = None) -> float:
    """Return the events/s of one run."""
    per_s: float = uvloop.run(measure(bootstrap, "baseline", USERS, N, filled)).per_s
    return per_s


def main() -> None:
    """Record medians of three runs each: new users, and users whose windows are full from the start."""
    with kafka() as bootstrap, tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        filled = Path(folder)
        fill(filled, USERS, PARTITIONS)
        new, full = [sustained(bootstrap) for _ in range(RUNS)], [sustained(bootstrap, filled) for _ in range(RUNS)]
    figures = {"new users": median(new), "full windows": median(full), "slowest run": round(min(new + full)), "fastest run": round(max(new + full))}
    record(
        "whole",
        figures,
        "events/s in one worker, catching up",
        "200,000 events of 20,000 users, windows of 64, baseline encoder, portraits of ten interests; goal 15,000",
    )


if __name__ == "__main__":
    main()
