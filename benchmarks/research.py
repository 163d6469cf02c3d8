"""Research data as event logs, read in place (CURRENTS_DATA, or ../shared/data) and never copied. The data have only the order; times are made up."""

import csv
import os
from pathlib import Path

import numpy as np

from encoder.towers import load_tower
from schemas.events import BEHAVIOR_CODE
from schemas.items import item_key
from schemas.windows import DTYPE, NO_DWELL
from training.log import Catalogue, EventLog, catalogue, event_log, ordered_rows
from training.splits import Split, held_out_users

DATA = Path(os.environ.get("CURRENTS_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
FOOD, KITCHEN = 1, 2


def ml1m(tower: str = "static") -> EventLog:
    """Return MovieLens-1M: 6,040 users, 3,416 films, in order."""
    rows = [line.rstrip("\n").split("\t") for line in (DATA / "ml1m" / "items.tsv").open()]
    vectors = load_tower(tower).encode([f"{title} {genres.replace('|', ', ')}" for _, _, title, genres in rows])
    films = catalogue([f"film:{r[0]}" for r in rows], vectors, [1] * len(rows), {1: "film"})
    row = {int(r[0]): n for n, r in enumerate(rows, 1)}
    lines = [line.split("\t") for line in (DATA / "ml1m" / "sequences.txt").open()]
    return log_of([u for u, _ in lines], [np.array([row[int(i)] for i in items.split()]) for _, items in lines], films)


def food_kitchen(tower: str = "static") -> tuple[EventLog, Split]:
    """Return Amazon Food and Kitchen. The training set has all events except the last item of the held-out users."""
    log, texts, split = food_kitchen_texts()
    return log.with_vectors(load_tower(tower).encode(texts)), split


def food_kitchen_texts() -> tuple[EventLog, list[str], Split]:
    """As `food_kitchen`, with item vectors of 0 dims, and the title of every row of the catalogue."""
    rows = [line.rstrip("\n").split("\t") for line in (DATA / "food_kitchen" / "items.tsv").open()]
    codes = [FOOD if r[1] == "food" else KITCHEN for r in rows]
    names = [f"{r[1]}:{r[0]}" for r in rows]
    things = catalogue(names, np.zeros((len(rows), 0), np.float32), codes, {FOOD: "food", KITCHEN: "kitchen"})
    row = {int(r[0]): n for n, r in enumerate(rows, 1)}
    users, histories = [], []
    for part in ("train_overlap", "train_A", "train_B", "valid", "test"):
        for line in (DATA / "food_kitchen" / f"{part}.txt").open():
            user, items = line.split("\t")
            users.append(f"{part}-{user}")
            histories.append(np.array([row[int(i)] for i in items.split(",")]))
    log = log_of(users, histories, things)
    part_of = parts_of(log)
    return log, ["", *(r[3] for r in rows)], held_out_users(log, part_of == "valid", part_of == "test")


def only(log: EventLog, code: int) -> EventLog:
    """Return the events of one platform."""
    return kept_rows(log, log.rows["platform"] == code)


def kept_rows(log: EventLog, keep: np.ndarray) -> EventLog:
    """Return the events that the mask `keep` (n,) selects."""
    users = np.repeat(np.array(log.users, object), np.diff(log.bounds))
    return event_log(users[keep], log.rows[keep], log.catalogue)


def parts_of(log: EventLog) -> np.ndarray:
    """Return (U,) file of each user of food_kitchen: train_overlap, train_A, train_B, valid or test."""
    return np.array([u.split("-")[0] for u in log.users])


def cold_items(log: EventLog, items: float, users: float, seed: int) -> tuple[EventLog, Split]:
    """Hold a share of the items out of training. The test cases are the last events of a share of the users, on any item."""
    r = np.random.default_rng(seed)
    cold = r.random(log.catalogue.size) < items
    last = log.bounds[1:] - 1
    lot = np.where(np.diff(log.bounds) >= 3, r.random(len(log.users)), 1.0)
    keep = ~cold[log.items]
    keep[last[lot < users]] = True
    left = kept_rows(log, keep)
    drawn = dict(zip(log.users, lot.tolist(), strict=True))
    mine = np.array([drawn[u] for u in left.users])
    alone = np.diff(left.bounds) < 2
    return left, held_out_users(left, (mine >= users) & (mine < users + 0.02) & ~alone, (mine < users) & ~alone)


def ml_latest_small(tower: str = "static") -> EventLog:
    """Return MovieLens latest-small with its true times: ratings (value: stars) and tags (as comments)."""
    folder = DATA / "ml_latest_small"
    with (folder / "movies.csv").open(newline="") as file:
        films = list(csv.DictReader(file))
    vectors = load_tower(tower).encode([f"{f['title']} {f['genres'].replace('|', ', ')}" for f in films])
    things = catalogue([f"film:{f['movieId']}" for f in films], vectors, [1] * len(films), {1: "film"})
    users, rows = [], []
    for name, behavior in (("ratings", "rate"), ("tags", "comment")):
        with (folder / f"{name}.csv").open(newline="") as file:
            for n, r in enumerate(csv.DictReader(file)):
                users.append(r["userId"])
                key = item_key(f"film:{r['movieId']}")
                value = float(r["rating"]) if "rating" in r else np.nan
                rows.append((int(r["timestamp"]) * 1000, 2 * n + (name == "tags"), key, 1, BEHAVIOR_CODE[behavior], NO_DWELL, value))
    return event_log(users, np.array(rows, DTYPE), things)


def log_of(users: list[str], histories: list[np.ndarray], items: Catalogue) -> EventLog:
    """Make an EventLog of users and their items (catalogue rows, oldest first)."""
    rows = ordered_rows(histories, items, BEHAVIOR_CODE["view"])
    return event_log([user for user, history in zip(users, histories, strict=True) for _ in history], rows, items)
