"""Effect of window quotas on small and large platforms: hit rate by platform, for policies with windows of the same size.

The evaluation is point in time: a window has the events before the target that the fold keeps. `--trained` adds encoders: the encoder of
`benchmarks.encoder food`, trained now if necessary, and on the synthetic world the shipped encoder.
"""

import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import record
from benchmarks.research import food_kitchen
from benchmarks.runs import FOOD, run
from encoder.baseline import HALF_LIFE, l2
from encoder.features import UNKNOWN
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.windows import Policy, newer
from streams.core.settings import Settings
from streams.demo.world_files import write_world
from training.evaluate import Score, rank
from training.job import Job
from training.log import EventLog, event_log, windows
from training.metrics import difference
from training.scorers import decayed_mean, model_scores, seen
from training.splits import Cases, by_time

PAIRS = {
    "food_kitchen": ((Policy(8), Policy(4, 2)), (Policy(16), Policy(8, 4)), (Policy(64), Policy(40, 8, 8))),
    "world": ((Policy(8), Policy(2, 2)), (Policy(16), Policy(4, 3, 3)), (Policy(64), Policy(40, 8, 8))),
}
PAIRS["drowned world"] = PAIRS["world"]
"""Data set -> pairs of policies (newest only, with quotas) with the same maximum number of rows; but 40 + 8 + 8 can have 72 on three platforms."""
EVENTS, USERS, THINNED = 120_000, 2000, 8
SEEDS = (1, 2, 3, 4)
METRIC = "hr@10"
Model = Callable[[Policy], Score]


class Part(NamedTuple):
    """A log and its held-out next actions, the test cases."""

    log: EventLog
    some: Cases


def food() -> list[Part]:
    """Return real orders on two platforms."""
    log, split = food_kitchen()
    return [Part(log, split.test)]


def worlds(drowned: bool) -> list[Part]:
    """Return synthetic worlds. `drowned`: keep one in eight shop and news events, and all of the video app's."""
    parts = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(prefix="currents-quotas-") as folder:
            made = Path(folder) / "world"
            write_world(made, EVENTS, USERS, seed, 30.0)
            platforms = Settings(**tomllib.loads((made / "currents.toml").read_text())).platforms
            log, _ = Job(data=made, platforms=platforms).load(print)
        if drowned:
            others = log.rows["platform"] != next(p.code for p in platforms if p.name == "video")
            stays = ~others | (others.cumsum() % THINNED == 0)
            log = event_log(np.repeat(np.array(log.users, object), np.diff(log.bounds))[stays].tolist(), log.rows[stays], log.catalogue)
        some = by_time(log, 0.1, 0.1, successive=True).test
        parts.append(Part(log, some if drowned else some.take(np.arange(0, len(some), 3))))
    return parts


def by_platform(policy: Policy) -> Score:
    """Score by the mean of the platforms' normalised decayed means. Each platform's newest events count in full, whatever their age."""

    def score(log: EventLog, some: Cases) -> np.ndarray:
        table, f = log.catalogue.table, windows(log, some.begin, some.end, policy)
        owner, _ = np.nonzero(f.mask)
        group, items = owner * 256 + f.rows["platform"][f.mask], f.items[f.mask]
        weight = np.exp2(-newer(group) / HALF_LIFE) * (items != UNKNOWN)
        found, number = np.unique(group, return_inverse=True)
        means = np.zeros((len(found), table.dims))
        np.add.at(means, number, weight[:, None] * table.vectors[items])
        users = np.zeros((len(some), table.dims))
        np.add.at(users, found // 256, l2(means))
        return np.asarray(users.astype(np.float32) @ table.vectors[: log.catalogue.size].T)

    return score


def compared(name: str, parts: list[Part], models: dict[str, Model]) -> list[dict[str, Any]]:
    """Compare every pair of policies under every model, over the cases of all parts: hit rates by platform, and paired differences.

    Both policies of a pair have the same maximum number of rows. Most windows with quotas have fewer rows. So a third policy keeps the newest events
    with the average number of rows of the quota windows.
    """
    history = np.concatenate([some.end - some.begin for _, some in parts])
    out = []
    for model, of in models.items():
        ranks: dict[Policy, np.ndarray] = {}
        for plain, quotas in PAIRS[name]:
            rows = np.concatenate([windows(log, some.begin, some.end, quotas).lengths for log, some in parts]).mean()
            alike = Policy(next(n for n in range(1, plain.overall + quotas.most) if np.minimum(history, n).mean() >= rows))
            for policy in {plain, quotas, alike} - ranks.keys():
                ranks[policy] = np.concatenate([rank(of(policy), log, some).rank for log, some in parts])
            row: dict[str, Any] = {"data": name, "model": model, "quotas": shown(quotas), "rows": round(float(rows), 1)}
            row |= {"newest": plain.overall, "newest of as many rows": alike.overall}
            row["platforms"] = by_target(parts, ranks[quotas], ranks[plain], ranks[alike])
            out.append({**row, "lifts": lifts(row["platforms"])})
            print(out[-1], flush=True)
    return out


def by_target(parts: list[Part], quotas: np.ndarray, plain: np.ndarray, alike: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return the target's platform -> hit rates of three policies, given as ranks (n,), and the differences of the quotas to the other two."""
    platform = np.concatenate([log.catalogue.platform[log.items[some.target]] for log, some in parts])
    out = {}
    for code in np.unique(platform).tolist():
        mine = platform == code
        rates = {name: round(float((r[mine] <= 10).mean()), 4) for name, r in (("quotas", quotas), ("newest", plain), ("as many", alike))}
        over = {name: difference(quotas[mine], r[mine], METRIC) for name, r in (("newest", plain), ("as many", alike))}
        out[parts[0].log.catalogue.platforms[code]] = {
            "events": sum(int((log.rows["platform"] == code).sum()) for log, _ in parts),
            "cases": int(mine.sum()),
            "moved": int((quotas != plain)[mine].sum()),
            "hr@10": rates,
            "over": {name: {k: round(v, 4) for k, v in d.items()} for name, d in over.items()},
        }
    return out


def of_food() -> dict[str, Model]:
    """Return the encoder of the benchmark `encoder food`."""
    log, split = food_kitchen()
    trained = run("food", log, split, FOOD).trained
    return {"trained on it": lambda policy: model_scores(trained.model, log, trained.residual, policy)}


def shipped() -> dict[str, Model]:
    """Return the encoder of the demo."""
    tower = load_tower("static")
    encoder = load_encoder("demo", tower.space_id, tower.dims)

    def of(policy: Policy) -> Score:
        def score(log: EventLog, some: Cases) -> np.ndarray:
            table = log.catalogue.table
            items = encoder.project(table.vectors[: log.catalogue.size], table.keys[: log.catalogue.size])
            return np.asarray(encoder.encode(seen(log, some, encoder.max_len, policy), table) @ items.T)

        return score

    return {"shipped for it": of}


def lifts(platforms: dict[str, dict[str, Any]]) -> bool:
    """Whether quotas should be the default: significantly better than both other policies on a platform that is not the largest, and on no platform
    significantly worse than either."""
    largest = max(platforms, key=lambda name: platforms[name]["events"])
    better = any(all(d["low"] > 0 for d in r["over"].values()) for name, r in platforms.items() if name != largest)
    return better and all(d["high"] >= 0 for r in platforms.values() for d in r["over"].values())


def shown(policy: Policy) -> str:
    """Format a policy as overall + per platform + strong."""
    return f"{policy.overall} + {policy.per_platform} + {policy.strong}"


def main() -> None:
    """Compare with the decayed mean, the mean of the platforms' decayed means, and encoders if requested."""
    models: dict[str, Model] = {"decayed mean": lambda p: decayed_mean(p.most, p), "by platform": by_platform}
    trained = "--trained" in sys.argv[1:]
    found = compared("food_kitchen", food(), {**models, **(of_food() if trained else {})})
    more = {**models, **(shipped() if trained else {})}
    found += compared("world", worlds(False), more)
    found += compared("drowned world", worlds(True), more)
    figures = {
        f"{r['data']}, {r['model']}, {r['newest of as many rows']} → {r['quotas']}": {
            name: "{mean:+.4f} ({low:+.4f} to {high:+.4f})".format(**p["over"]["as many"]) for name, p in r["platforms"].items()
        }
        for r in found
        if r["model"] != "by platform" and r["newest"] > 8
    }
    figures["policies that lift a small platform and cost none"] = sum(r["lifts"] for r in found)
    record(
        "quotas",
        figures,
        "HR@10 under quotas less that of as many newest, with its 95 % interval",
        "overall + each platform + strong; full ranking of the target's platform; four worlds; drowned: an eighth of the shop's and the news' events",
        details=found,
    )


if __name__ == "__main__":
    main()
