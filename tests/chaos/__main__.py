"""`python -m tests.chaos --kills 100 --seed 1`: the last line is one JSON object; exit status 1 if anything is wrong."""

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from tests.chaos.driver import REPORTED, WRONG, Result, Setup, run
from tests.chaos.schedule import EVERY_WAY, KINDS, Fault, draw, shrink


def main() -> int:
    """Draw a schedule, run it, shrink it if it fails, and report."""
    options = arguments()
    for name in ("aiokafka", "kafka", "stamina"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # broker outages are intended
    setup = Setup(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Setup) if hasattr(options, f.name)})
    wanted = {"kills": options.kills, "rebalances": options.rebalances, "broker_stops": options.broker_stops, "swaps": options.swaps}
    faults = draw(setup.seed, wanted, setup.workers, setup.brokers, options.only)
    say(f"seed {setup.seed}: {len(faults)} faults, {setup.workers} workers and one that joins, {setup.brokers} brokers, {setup.rate:.0f} events/s")
    result = run(faults, setup, say, options.keep)
    report(result)
    if result.wrong():
        say(f"SEED {setup.seed} FAILS: {result.failure or {k: result.figures.get(k) for k in WRONG}}")
        if options.shrink_minutes:
            shortest(faults, setup, options.shrink_minutes)
    for missed in result.missed():
        say(f"did not happen: {missed.fault}")
    print(orjson.dumps({name: result.figures.get(name, -1) for name in REPORTED}).decode(), flush=True)
    return int(result.wrong() or bool(result.missed()))


def shortest(faults: Sequence[Fault], setup: Setup, minutes: float) -> None:
    """Print the shortest failing schedule found within `minutes`."""
    deadline = time.monotonic() + minutes * 60

    def fails(some: Sequence[Fault]) -> bool:
        if time.monotonic() > deadline:
            return False
        say(f"trying {len(some)} of {len(faults)} faults")
        return run(some, dataclasses.replace(setup, rebalances=0), lambda _: None).wrong()

    found = shrink(faults, fails)
    say(f"SEED {setup.seed}, shortest schedule found that fails ({len(found)} faults):")
    for fault in found:
        say(f"    {fault!r}")


def report(result: Result) -> None:
    """Print the workers' last words and every figure."""
    for words, times in sorted(result.ended.items()):
        say(f"{times} times a worker ended by itself: {words}")
    say(f"{len(result.outcomes) - len(result.missed())} of {len(result.outcomes)} faults happened; {result.figures}")


def say(line: str) -> None:
    print(line, flush=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    p.add_argument("--kills", type=int, default=20, help="kill -9 of workers, at least")
    p.add_argument("--rebalances", type=int, default=0, help="at least")
    p.add_argument("--broker-stops", type=int, default=0, help="at least")
    p.add_argument("--swaps", type=int, default=0, help="other encoders served, at least")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, choices=(1, 2, 3), help=f"one more joins and leaves; 3, or 2 for fewer than {EVERY_WAY} kills")
    p.add_argument("--brokers", type=int, choices=(1, 2, 3), help=f"3, or 1 for fewer than {EVERY_WAY} kills")
    p.add_argument("--rate", type=float, help=f"events/s; 500, or 200 for fewer than {EVERY_WAY} kills")
    p.add_argument("--users", type=int, default=3000)
    p.add_argument("--partitions", type=int, default=6)
    p.add_argument("--only", nargs="*", default=(), choices=tuple(k for k in KINDS if k != "swap"), help="kinds of faults; all by default")
    p.add_argument("--shrink-minutes", type=float, default=60, help="how long to look for a shorter schedule that fails")
    p.add_argument("--keep", type=Path, help="folder for logs and data, which stay")
    given = p.parse_args()
    large = given.kills >= EVERY_WAY
    for name, value in (("workers", 3 if large else 2), ("brokers", 3 if large else 1), ("rate", 500.0 if large else 200.0)):
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


if __name__ == "__main__":
    sys.exit(main())
