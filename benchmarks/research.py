"""Research data as event logs. They are read where they lie (CURRENTS_DATA, or ../shared/data) and never copied. Orders only: times are made up."""

import os
from pathlib import Path

import numpy as np

from encoder.towers import load_tower
from schemas.events import BEHAVIOR_CODE
from training.log import Catalogue, EventLog, catalogue, event_log, ordered_rows
from training.splits import Split, held_out_users

DATA = Path(os.environ.get("CURRENTS_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
FOOD, KITCHEN = 1, 2


def ml1m(tower: str = "static") -> EventLog:
    """MovieLens-1M: 6,040 users, 3,416 films, in order."""
    rows = [line.rstrip("\n").split("\t") for line in (DATA / "ml1m" / "items.tsv").open()]
    vectors = load_tower(tower).encode([f"{title} {genres.replace('|', ', ')}" for _, _, title, genres in rows])
    films = catalogue([f"film:{r[0]}" for r in rows], vectors, [1] * len(rows), {1: "film"})
    row = {int(r[0]): n for n, r in enumerate(rows, 1)}
    lines = [line.split("\t") for line in (DATA / "ml1m" / "sequences.txt").open()]
    return log_of([u for u, _ in lines], [np.array([row[int(i)] for i in items.split()]) for _, items in lines], films)


def food_kitchen(tower: str = "static") -> tuple[EventLog, Split]:
    """Amazon Food and Kitchen: everything is trained on but the last item of the held-out users."""
    log, texts, split = food_kitchen_texts()
    return log.with_vectors(load_tower(tower).encode(texts)), split


def food_kitchen_texts() -> tuple[EventLog, list[str], Split]:
    """The same with item vectors of no dims, and the title of every row of the catalogue."""
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
    part_of = np.array([u.split("-")[0] for u in log.users])
    return log, ["", *(r[3] for r in rows)], held_out_users(log, part_of == "valid", part_of == "test")


def log_of(users: list[str], histories: list[np.ndarray], items: Catalogue) -> EventLog:
    """Users and their items, oldest first, as catalogue rows -> EventLog."""
    rows = ordered_rows(histories, items, BEHAVIOR_CODE["view"])
    return event_log(np.repeat(np.array(users, object), [len(h) for h in histories]), rows, items)
