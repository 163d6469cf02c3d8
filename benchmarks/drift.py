"""Cost per event of drift detection, on the mapping and encoding threads and on the event loop; without a broker."""

import time
from itertools import count

import numpy as np

from benchmarks.common import record
from schemas.events import Event
from streams.ingest.normalise import LOOKED_AT
from streams.monitoring.drift import Drift, field_bins

RUNS = 300
DIMS, ITEMS, TESTED = 128, 20_000, 20


def took_us(work: object, runs: int = RUNS) -> float:
    """Return the median duration of several runs, µs."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - began)
    return 1e6 * float(np.median(times))


def main() -> None:
    """Measure batches of 20 and of 500 events of three platforms, which occur at a thousand events a second and under load."""
    r, figures = np.random.default_rng(0), dict[str, float]()
    drift = Drift(300.0, 24.0, 0.2, 0.02, 1e-4, 500, lambda what, of, psi, alarm: None)
    vectors, items = r.standard_normal((TESTED, DIMS)).astype(np.float32), r.standard_normal((ITEMS, DIMS)).astype(np.float32)
    users = count()
    for n in (20, 500):
        behaviors, unknown = r.integers(0, 12, n), r.random(n) < 0.02
        platforms = r.integers(0, 3, n)
        batch = [Event(1, "u", 1, 1, 1, 1, f"sku-{k}", "a", 2.0) for k in range(n)]
        some = [field_bins(e) for e in batch[:: max(1, n // LOOKED_AT)]]

        def arriving(behaviors: np.ndarray = behaviors, unknown: np.ndarray = unknown, platforms: np.ndarray = platforms) -> None:
            for p in np.unique(platforms).tolist():
                mine = platforms == p
                drift.events(str(p), behaviors[mine], unknown[mine])

        figures[f"encoding thread, batches of {n}"] = round(took_us(arriving) / n, 3)
        figures[f"mapping thread, batches of {n}"] = round(took_us(lambda b=batch, n=n: [field_bins(e) for e in b[:: max(1, n // LOOKED_AT)]]) / n, 3)
        figures[f"event loop, batches of {n}"] = round(took_us(lambda n=n, s=some: drift.records("shop", n, [], s)) / n, 3)

    def tested() -> None:
        drift.vectors("v1", [b"%d" % next(users) for _ in range(TESTED)], vectors, items)

    figures["a tested profile's vector"] = round(took_us(tested, 50) / TESTED, 1)
    record("drift", figures, "µs an event", f"medians; vectors of {DIMS} dims, {TESTED} at once as at releases.observed_per_s = 20")


if __name__ == "__main__":
    main()
