"""Seconds of each step of a warm `currents retrain --once` from the live log on Apache Kafka, and the share outside training.

An earlier run of the same command trained the serving release on the first tenth of the log. Only the second run is measured.
"""

import argparse
import asyncio
import json
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common import kafka, record, send
from encoder.recipe import GateRules
from encoder.towers import load_tower
from schemas.events import encode_event
from schemas.mapping import Mapper, Rejected
from schemas.releases import Release
from streams.core.settings import Settings
from streams.demo.world import World
from streams.offline.retraining import RetrainError, once
from streams.releases.release_log import announce, candidate, promoted, read_history
from streams.state.item_store import item_rows
from streams.transport.topics import asking, create

EVENTS, DAYS, DAY_MS = 1_000_000, 60, 86_400_000
TRAINING: dict[str, Any] = {
    "preset": "xs", "dims": 64, "max_len": 32, "epochs": 4, "batch_events": 4096, "threads": 2, "log_to": "none", "precision": "no",
}  # fmt: skip
LAX = GateRules(gain=-0.9, platform_loss=0.99, cold_loss=0.99, min_cases=0)  # gate of the first run, whose encoder only has to serve
STEPS = ("slice", "examples", "train", "align", "bundle", "evaluate", "gate", "announce")


def unified(world: World, mappers: dict[str, Mapper], events: int, end_ms: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield records of the unified topic with times spread over DAYS up to `end_ms`."""
    made = 0
    stream = world.events(lambda: end_ms - (events - made) * DAYS * DAY_MS // events)
    for event in stream:
        mapped = mappers[event.platform].events(event.value, "bench", 0, made, end_ms) if event.value is not None else []
        for row in [] if isinstance(mapped, Rejected) else mapped:
            yield row.user_id.encode(), encode_event(row)
            made += 1


def items(world: World, mappers: dict[str, Mapper], at_ms: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield records of the topic of item vectors."""
    found = [i for platform, _, value in world.items() if not isinstance(i := mappers[platform].item(value), Rejected)]
    yield from ((key, value) for key, value, _ in item_rows(found, load_tower("static"), at_ms))


def prepared(bootstrap: str, folder: Path, events: int, epochs: int) -> Settings:
    """Create the topics and return the settings of `currents retrain`."""
    platforms = tomllib.loads((files("streams.demo") / "demo.toml").read_text())["platforms"]
    told = {"folder": folder / "runs", "bundles": str(folder / "bundles"), "events": events, "min_events": 1000, "epochs": epochs}
    settings = Settings(
        kafka={"bootstrap": bootstrap}, worker={"prefix": f"r{time.time_ns()}", "partitions": 4}, platforms=platforms, training=TRAINING,
        gate={"cold_loss": 0.2}, retrain=told,
    )  # fmt: skip
    with asking(settings.kafka) as client:
        create(client, settings)
    return settings


def serve(settings: Settings) -> Release:
    """Make the first run's candidate the serving release, without a canary."""
    topic = settings.topic("releases")
    history = asyncio.run(read_history(settings.kafka, topic))
    found = candidate(history)
    assert found is not None
    release = promoted(history, found, "baseline", "the benchmark", "", found.at, {})
    asyncio.run(announce(settings.kafka, topic, "serving", release))
    return release


def main() -> None:
    """Do two runs and record the second."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--epochs", type=int, default=4, help="of the warm run")
    asked = parser.parse_args()
    end_ms = time.time_ns() // 1_000_000
    with kafka() as bootstrap, tempfile.TemporaryDirectory(prefix="currents-bench-") as at:
        settings = prepared(bootstrap, Path(at), asked.events, asked.epochs)
        world = World(7, asked.events // 100)
        mappers = {p.name: Mapper(p, 0, 0) for p in settings.platforms}
        asyncio.run(send(settings, settings.topic("item-vectors"), items(world, mappers, end_ms)))
        rows = unified(world, mappers, asked.events, end_ms)
        asyncio.run(send(settings, settings.topic("events"), islice(rows, asked.events // 10)))
        once(settings.model_copy(update={"gate": LAX}))
        served = serve(settings)
        print(f"{served.version} serves", flush=True)
        asyncio.run(send(settings, settings.topic("events"), islice(rows, asked.events - asked.events // 10)))
        before, began = set(settings.retrain.folder.iterdir()), time.monotonic()
        ended = "announced"
        try:
            once(settings)
        except RetrainError as error:  # a refusal by the gate is a result too
            ended = str(error).split("; kept")[0]
        whole = time.monotonic() - began
        (run,) = set(settings.retrain.folder.iterdir()) - before
        found = {name: json.loads((run / f"{name}.json").read_text()) for name in STEPS if (run / f"{name}.json").exists()}
        everything = found["evaluate"]["slices"]["all"]
        figures = {
            "seconds": round(whole),
            "but training": round(whole - found["train"]["seconds"]),
            **{f"s of {name}": found[name]["seconds"] for name in found},
            "serving NDCG@10": round(everything["serving"], 4),
            "candidate NDCG@10": round(everything["candidate"], 4),
        }
        examples, train = found["examples"], found["train"]
        note = (
            f"{examples['events']:,} events of {examples['users']:,} users of the synthetic world, XS, L = 32, {asked.epochs} epochs from a warm "
            f"start ({train['start']}), 2 threads; {ended}; goal: 30 min, of which 3 are "
            "not training"
        )
        record("retrain", figures, "s", note)


if __name__ == "__main__":
    main()
