"""From the live log to an announced candidate."""

import asyncio
import json
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from kafka import KafkaProducer

from encoder.bundle import open_bundle
from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.towers import load_tower
from schemas.events import encode_event
from schemas.mapping import Mapper, Rejected
from streams.core.errors import StorageError
from streams.core.process import claim
from streams.core.settings import Settings, load
from streams.demo.world import World
from streams.offline.retraining import RetrainError, once
from streams.releases.bundle_fetch import fetch
from streams.releases.release_log import announce, candidate, read_history
from streams.state.item_store import item_rows
from streams.transport.topics import asking, create
from tests.training.test_retrain import LAX, SMALL
from training.export import export
from training.job import Job
from training.retrain import retrain

pytestmark = pytest.mark.broker
EVENTS, START = 6000, 1_750_000_000_000


@pytest.fixture(scope="module")
def settings(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Topics that hold a small world, and an untrained encoder that serves."""
    folder, tower = tmp_path_factory.mktemp("retrain"), load_tower("static")
    (folder / "plain.toml").write_text((Path(__file__).parents[3] / "streams" / "demo" / "demo.toml").read_text())
    torch.manual_seed(0)
    export(SequenceEncoder(preset("xs", tower.dims, dims=32, max_len=8)), folder / "serving", tower.space_id, "xs")
    found = Settings(
        kafka={"bootstrap": bootstrap}, worker={"prefix": f"r{time.time_ns()}", "partitions": 2}, platforms=load(folder / "plain.toml").platforms,
        encoding={"encoder": str(folder / "serving")}, training=SMALL, gate=LAX,
        retrain={"folder": folder / "runs", "bundles": str(folder / "bundles"), "epochs": 4, "lr": 1e-3, "min_events": 5000},
    )  # fmt: skip
    with asking(found.kafka) as client:
        create(client, found)
    fill(found)
    return found


def fill(settings: Settings) -> None:
    world = World(1, 150)
    mappers = {p.name: Mapper(p, 0, 0) for p in settings.platforms}
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    items = [i for platform, _, value in world.items() if not isinstance(i := mappers[platform].item(value), Rejected)]
    for key, row, _ in item_rows(items, load_tower("static"), START):
        producer.send(settings.topic("item-vectors"), row, key)
    sent, stream = 0, world.events(lambda: START - (EVENTS - sent) * 288_000)
    while sent < EVENTS:
        event = next(stream)
        mapped = mappers[event.platform].events(event.value, "t", 0, sent, START) if event.value is not None else []
        for made in [] if isinstance(mapped, Rejected) else mapped:
            producer.send(settings.topic("events"), encode_event(made), made.user_id.encode())
        sent += 1
    producer.close()


class Killed(Exception):
    pass


def here(job: Path, folder: Path) -> None:
    """The steps between, in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    retrain(Job.model_validate_json(job.read_bytes()), folder, lambda line: None)


def records(settings: Settings) -> list[str]:
    history = asyncio.run(read_history(settings.kafka, settings.topic("releases")))
    return [a.release.version for a in history if a.channel == "candidate" and a.release]


def test_announced_once(settings: Settings, tmp_path: Path) -> None:
    """Killed around the slice and between the record and its note, a run goes on; its candidate is announced once, and can be fetched."""
    due = ["in slice", "after slice", "in announce"]

    def point(at: str) -> None:
        if due and at == due[0]:
            due.pop(0)
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            once(settings, here, point)
    found = once(settings, here, point)
    (folder,) = (f for f in settings.retrain.folder.iterdir() if f.is_dir())
    steps = {f.stem: json.loads(f.read_text()) for f in folder.glob("*.json")}
    assert set(steps) == {"job", "slice", "examples", "train", "align", "bundle", "evaluate", "gate", "announce"}
    assert steps["slice"]["offsets"] >= steps["examples"]["events"] > 5000
    assert records(settings) == [found["version"]]
    release = candidate(asyncio.run(read_history(settings.kafka, settings.topic("releases"))))
    serving = open_bundle(settings.encoding.encoder).manifest
    assert release is not None
    assert (release.state, release.previous, release.space_id) == ("candidate", serving.version, serving.space_id)
    assert min(release.metrics["ndcg@10"], release.metrics[f"ndcg@10 of {serving.version}"]) > 0
    assert open_bundle(fetch(release, tmp_path)).manifest.version == found["version"]

    # Only one at a time, and none while a candidate is on trial.
    with claim(settings.retrain.folder), pytest.raises(StorageError, match=r"retrain\.folder = .*: another run runs in it"):
        once(settings)
    trial = type(release)(**{f: getattr(release, f) for f in release.__struct_fields__} | {"state": "canary", "share": 0.1})
    asyncio.run(announce(settings.kafka, settings.topic("releases"), "candidate", trial))
    with pytest.raises(RetrainError, match=rf"candidate {release.version} is on trial \(canary\)"):
        once(settings)


def test_refused_by_the_process(settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The training process refuses a slice with too few events in one line; the run is over, nothing is announced, and the next one begins anew."""
    retraining = settings.retrain.model_copy(update={"min_events": 10**6, "events": 1000, "folder": tmp_path / "runs"})
    other = settings.model_copy(update={"retrain": retraining, "encoding": settings.encoding.model_copy(update={"encoder": "baseline"})})
    before = records(settings)
    trials = asyncio.run(read_history(settings.kafka, settings.topic("releases")))
    if (on := candidate(trials)) is not None:
        ended = type(on)(**{f: getattr(on, f) for f in on.__struct_fields__} | {"state": "refused", "share": 0.0})
        asyncio.run(announce(settings.kafka, settings.topic("releases"), "candidate", ended))
        before = records(settings)
    for n in (1, 2):
        with pytest.raises(RetrainError, match=r"too few events: \d+ in the slice; want at least 1000000 \(retrain.min_events\); kept in "):
            once(other)
        assert len([f for f in (tmp_path / "runs").iterdir() if f.is_dir()]) == n
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("currents:")]
    assert len(said) == 2
    assert records(settings) == before
    assert not list((tmp_path / "runs").glob("*/bundle"))
