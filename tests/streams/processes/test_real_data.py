"""Real interactions through one worker: every event in, every window and profile as the log says, queries that make sense."""

import csv
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from schemas.events import decode_event
from schemas.windows import rows_of
from streams.audit import windows as verify
from testkit.cluster import RIGHT, Cluster, WorkerProcess

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]

AMAZON = """
[[platforms]]
name = "food"
code = 1
preset = "plain"
shared_ids = true
topic = "{prefix}.food"
items_topic = "{prefix}.food-items"

[[platforms]]
name = "kitchen"
code = 2
preset = "plain"
shared_ids = true
topic = "{prefix}.kitchen"
items_topic = "{prefix}.kitchen-items"
"""
MOVIES = """
[[platforms]]
name = "movies"
code = 1
topic = "{prefix}.movies"
items_topic = "{prefix}.movie-items"
account = "userId"
item = "movieId"
behavior = "kind"
behaviors = {{ rating = "rate", tag = "comment" }}
time = "timestamp"
time_format = "s"
value = "rating"
value_scale = [0.5, 5.0]

[platforms.items]
id = "movieId"
title = "title"
categories = "genres"
separator = "|"
"""
FIRST_FOOD_AT = 1_700_000_000_000  # made up: the data have an order and no times
STEP_MS = 60_000
FILES = {"overlap": "train_overlap.txt", "food": "train_A.txt", "kitchen": "train_B.txt", "valid": "valid.txt", "test": "test.txt"}


def data(name: str) -> Path:
    """A folder of the research data, which are not part of the project: in $CURRENTS_DATA. Where that is set and it is not there, the test fails."""
    where = os.environ.get("CURRENTS_DATA")
    if not where:
        pytest.skip(f"wants the public data set {name}: set CURRENTS_DATA to the folder that has it")
    folder = Path(where) / name
    assert folder.is_dir(), f"CURRENTS_DATA = {where}: has no folder {name}"
    return folder


def sequences(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Users and their items, oldest first. User numbers restart in each file, so the file is part of the id."""
    for prefix, name in FILES.items():
        for line in (folder / name).read_text().splitlines():
            user, items = line.split("\t")
            yield f"{prefix}-{user}", items.split(",")


def test_food_kitchen(cluster: Callable[..., Cluster]) -> None:
    """Two platforms with shared users: 437,000 interactions and 36,000 titles come in whole, and a user of both has one profile."""
    folder = data("food_kitchen")
    c = cluster(toml=AMAZON)
    domain, items, events = {}, {"food": list[bytes](), "kitchen": list[bytes]()}, {"food": list[bytes](), "kitchen": list[bytes]()}
    for line in (folder / "items.tsv").read_text().splitlines():
        number, platform, _, title = line.split("\t")
        domain[number] = platform
        items[platform].append(orjson.dumps({"id": number, "title": title}))
    users = dict(sequences(folder))
    for user, acted in users.items():
        for n, item in enumerate(acted):
            row = {"account": user, "item": item, "behavior": "buy", "time": FIRST_FOOD_AT + n * STEP_MS, "id": f"{user}/{n}"}
            events[domain[item]].append(orjson.dumps(row))
    for platform in ("food", "kitchen"):
        c.send(f"{c.prefix}.{platform}-items", items[platform])
        c.send(f"{c.prefix}.{platform}", events[platform])
    worker = c.worker("a").ready()
    c.drain()

    log = c.log("events")
    assert len({decode_event(r.value).event_id for r in log}) == len(log) == sum(map(len, events.values())) > 400_000
    windows = verify.latest(c.log("windows"))
    assert windows.keys() == {u.encode() for u in users}
    assert all(len(rows_of(windows[u.encode()])) == min(64, len(acted)) for u, acted in users.items())
    both = [u for u, acted in users.items() if u.startswith("overlap-") and len({domain[i] for i in acted[-64:]}) == 2]
    sample = random.Random(1).sample(both, 200)
    for row in worker.post("/v1/profiles:batchGet", {"user_ids": sample}).json()["profiles"]:
        assert row["events"] == min(64, len(users[row["user_id"]]))
        assert row["unknown_items"] == 0
    assert all(set(rows_of(windows[u.encode()])["platform"]) == {1, 2} for u in both)
    names = {u: [f"{domain[i]}:{i}" for i in acted] for u, acted in users.items()}
    assert_queries(worker, {u: names[u] for u in sample}, [f"{p}:{i}" for i, p in domain.items()])
    assert worker.terminate() == 0
    assert c.dead() == []
    assert c.check(worker.data_dir) == RIGHT


def test_movies(cluster: Callable[..., Cluster]) -> None:
    """Ratings and tags with true times, from 1996 on, as two behaviors of one platform."""
    folder = data("ml_latest_small")
    c = cluster(toml=MOVIES, ingest={"earliest": "1995-01-01"})
    c.send(f"{c.prefix}.movie-items", map(orjson.dumps, rows(folder / "movies.csv")))
    acted = [{**row, "kind": kind} for kind in ("rating", "tag") for row in rows(folder / f"{kind}s.csv")]
    c.send(f"{c.prefix}.movies", map(orjson.dumps, acted))
    worker = c.worker("a").ready()
    c.drain()

    log = [decode_event(r.value) for r in c.log("events")]
    assert len(log) == len(acted) == 104_519
    assert sum(e.value is None for e in log) == sum(row["kind"] == "tag" for row in acted)
    assert {e.value for e in log if e.value is not None} == {(stars / 2 - 2.75) / 2.25 for stars in range(1, 11)}
    watched: dict[str, list[str]] = {}
    for row in sorted(acted, key=lambda r: int(r["timestamp"])):
        watched.setdefault(f"movies:{row['userId']}", []).append(f"movies:{row['movieId']}")
    assert_queries(worker, watched, [f"movies:{row['movieId']}" for row in rows(folder / "movies.csv")])
    assert worker.terminate() == 0
    assert c.dead() == []
    assert c.check(worker.data_dir) == RIGHT


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def assert_queries(worker: WorkerProcess, history: dict[str, list[str]], items: list[str]) -> None:
    """A sample of users is known, one who never was is not, and what a user chose last ranks above items drawn at random."""
    r = random.Random(2)
    users = r.sample(sorted(history), 40)
    margins = []
    for user in users:
        profile = worker.get(f"/v1/profiles/{user}").json()
        assert profile["user_id"] == user
        own, other = list(dict.fromkeys(history[user][-5:])), r.sample(items, 50)
        ranked = worker.post(f"/v1/profiles/{user}:rank", {"items": own + other}).json()
        assert ranked["unknown"] == []
        score = {row["item"]: row["score"] for row in ranked["ranked"]}
        margins.append(np.mean([score[i] for i in own]) - np.mean([score[i] for i in other]))
    assert np.mean(margins) > 0.1
    assert worker.get("/v1/profiles/nobody-at-all").status_code == 404
    found = worker.post("/v1/profiles:batchGet", {"user_ids": [*users, "nobody-at-all"]}).json()
    assert [row["user_id"] for row in found["profiles"]] == users
    assert found["unknown"] == ["nobody-at-all"]
