"""Draws schedules of faults from a seed, and shrinks failing schedules. Pure: a schedule is data."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of fault. A fault causes at least `kills` kills and `rebalances` rebalances; with `per_worker`, as many for each worker."""

    share: float
    """Relative frequency among all kinds."""
    seconds: tuple[float, float]
    """Bounds of the duration before the fault is undone."""
    ways: tuple[str, ...] = ("",)
    kills: int = 0
    rebalances: int = 0
    per_worker: bool = False
    brokers: int = 0
    """Number of brokers that the fault needs; it hits one of them."""


EVERY_WAY = 20
"""A schedule with at least so many kills has every way of every kind. A smaller schedule only has the faults that it needs for its kills."""
PAST_SESSION = (9.0, 13.0)  # seconds, with sessions of 6
KINDS = {
    "kill": Kind(24, (0, 0), ("", "", "starting"), kills=1, rebalances=1),
    "kill-at": Kind(24, (0, 0), ("after-rocksdb", "in-publish", "after-changelog", "before-commit"), kills=1, rebalances=1),
    "kill-in-restore": Kind(6, (0, 0), ("0", "1", "3"), kills=2, rebalances=1),
    "kill-in-rebalance": Kind(6, (0, 0), ("0", "1"), kills=1, rebalances=2),
    "term": Kind(6, (0, 0), ("", "starting"), rebalances=1),
    "term-at": Kind(6, (0, 0), ("after-rocksdb", "after-changelog", "before-commit", "in-rebalance", "in-restore"), rebalances=1),
    "stop": Kind(6, PAST_SESSION, rebalances=1),
    "stop-at": Kind(8, PAST_SESSION, ("after-rocksdb", "in-publish", "in-publish", "before-commit", "in-rebalance"), rebalances=1),
    "join": Kind(6, (4, 10), rebalances=2),
    "all-gone": Kind(3, (0, 8), ("kill", "term"), rebalances=1),
    "emptied": Kind(4, (0, 0), kills=1, rebalances=1),
    "corrupt": Kind(6, (0, 0), ("sst", "manifest", "gone", "half", "items"), rebalances=1),
    "broker": Kind(8, (3, 9), ("term", "kill"), brokers=1),
    "leader": Kind(6, (0, 0), brokers=2),
    "cut": Kind(8, (2, 14), ("hold", "refuse")),
    "cut-one": Kind(6, (2, 14), ("hold", "refuse"), brokers=2),
    "full-disk": Kind(4, (2, 5), rebalances=1),
    "clock": Kind(4, (3, 8), ("7200000", "50000000", "-200000", "100000000")),
    "poison": Kind(4, (0, 0)),
    "storm": Kind(3, (0, 0)),
    "encoder": Kind(2, (0, 0), rebalances=1),
    "swap": Kind(0, (0, 0), ("v1", "v2", "v3", "baseline")),
}


@dataclass(frozen=True)
class Fault:
    """Owns the description of one fault in a schedule."""

    kind: str
    after_s: float
    """Seconds since the start of the previous fault."""
    seconds: float
    slot: int
    """Index of the worker or broker."""
    way: str = ""
    luck: int = 0
    """Random number for the fault's other choices."""

    def __str__(self) -> str:
        return f"{self.kind}{'/' * bool(self.way)}{self.way} of {self.slot}"


def kills(faults: Sequence[Fault], workers: int) -> int:
    """Return the least number of `kill -9` in a schedule."""
    return sum(workers if f.kind == "all-gone" and f.way == "kill" else KINDS[f.kind].kills for f in faults)


def rebalances(faults: Sequence[Fault]) -> int:
    """Return the least number of rebalances that a schedule causes if its faults do not overlap."""
    return sum(KINDS[f.kind].rebalances for f in faults)


def draw(seed: int, wanted: dict[str, int], workers: int, brokers: int, only: Sequence[str] = ()) -> tuple[Fault, ...]:
    """Draw a schedule with the wanted numbers of kills, rebalances, broker stops and swaps. Unless it is small (EVERY_WAY), it has every way of every
    kind at least once; `only` restricts the kinds. Workers are slots 0.., the next slot is the joining worker."""
    r, swaps = random.Random(seed), wanted.get("swaps", 0)
    apart = {"swap", "encoder"} if swaps else {"swap"}  # workers that follow the topic of releases ignore the encoder of their settings
    kinds = {k: v for k, v in KINDS.items() if k not in apart and v.brokers <= brokers and (not only or k in only)}
    small = not only and wanted.get("kills", 0) < EVERY_WAY
    faults = [] if small else [_draw(r, kind, way, workers, brokers) for kind, spec in kinds.items() for way in dict.fromkeys(spec.ways)]
    need: list[tuple[Callable[[Sequence[Fault]], int], str, list[str]]] = [
        (lambda fs: sum(f.kind == "broker" for f in fs), "broker_stops", ["broker"]),
        (lambda fs: kills(fs, workers), "kills", list(kinds) if any(v.kills for v in kinds.values()) else []),
        (rebalances, "rebalances", [k for k in kinds if kinds[k].rebalances]),
    ]
    for count, name, names in need:
        may = [k for k in names if k in kinds]
        while may and count(faults) < wanted.get(name, 0):
            (kind,) = r.choices(may, [kinds[k].share for k in may])
            faults.append(_draw(r, kind, r.choice(kinds[kind].ways), workers, brokers))
    r.shuffle(faults)
    places = sorted(r.choices(range(len(faults) + 1), k=swaps))
    for place, way in reversed(list(zip(places, _releases(r, swaps), strict=True))):
        faults.insert(place, _draw(r, "swap", way, workers, brokers))
    return tuple(faults)


def _releases(r: random.Random, n: int) -> list[str]:
    """Return the releases of n swaps: all releases in turn, never the previous one. Workers start with the baseline."""
    found = ["baseline"]
    while len(found) <= n:
        some = r.sample(KINDS["swap"].ways, len(KINDS["swap"].ways))
        found += some[1:] + some[:1] if some[0] == found[-1] else some
    return found[1 : n + 1]


def _draw(r: random.Random, kind: str, way: str, workers: int, brokers: int) -> Fault:
    spec = KINDS[kind]
    slot = workers if kind == "join" else r.randrange(brokers if kind in ("broker", "leader") else workers)
    after = r.uniform(0, 1) if r.random() < 0.2 else r.uniform(2, 6)  # some faults follow at once
    return Fault(kind, round(after, 2), round(r.uniform(*spec.seconds), 2), slot, way, r.randrange(1 << 30))


def shrink(faults: Sequence[Fault], fails: Callable[[Sequence[Fault]], bool]) -> tuple[Fault, ...]:
    """Return a failing schedule from which no fault can be left out (delta debugging, ddmin).

    Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE TSE 28(2), 2002.
    """
    left, parts = list(faults), 2
    while len(left) >= 2:
        size = -(-len(left) // parts)
        chunks = [left[i : i + size] for i in range(0, len(left), size)]
        rest = [[f for j, chunk in enumerate(chunks) if j != i for f in chunk] for i in range(len(chunks))]
        if found := next((c for c in chunks if len(c) < len(left) and fails(c)), None):
            left, parts = found, 2
        elif len(chunks) > 2 and (found := next((c for c in rest if fails(c)), None)):
            left, parts = found, max(parts - 1, 2)
        elif parts >= len(left):
            break
        else:
            parts = min(len(left), parts * 2)
    return tuple(left)
