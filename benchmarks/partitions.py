"""Events/s of the whole job by number of partitions, with one worker that owns all of them: python -m benchmarks.partitions --counts 1 4 32."""

import argparse

import uvloop

from benchmarks.common import kafka, median, record
from benchmarks.job import measure

COUNTS, EVENTS, USERS, RUNS = (1, 2, 4, 8, 16, 32), 100_000, 20_000, 2


def main() -> None:
    """Record the faster of two runs each, because other load on the machine only slows a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--runs", type=int, default=RUNS)
    a = parser.parse_args()
    figures, cpu = dict[str, float](), dict[str, float]()
    with kafka() as bootstrap:
        for n in a.counts:
            runs = [uvloop.run(measure(bootstrap, "baseline", USERS, a.events, None, worker={"partitions": n})) for _ in range(a.runs)]
            figures[f"{n} partitions"] = median([max(r.per_s for r in runs)])
            cpu[f"{n} partitions"] = round(min(r.cpu_us for r in runs), 1)
            print(n, runs, flush=True)
    first, last = a.counts[0], a.counts[-1]
    figures[f"{last} over {first}"] = round(figures[f"{last} partitions"] / figures[f"{first} partitions"], 2)
    note = f"baseline encoder, {a.events:,} events of {USERS:,} users, the faster of {a.runs} runs; goal: flat"
    record("partitions", figures, "events/s in one worker, catching up", note, cpu_us_an_event=cpu)


if __name__ == "__main__":
    main()
