"""The archive of the unified topic: every record once, and the same training as from the topic."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaProducer

from encoder.recipe import Recipe
from encoder.towers import load_tower
from schemas.archive import Archive, ArchiveError, current
from schemas.events import Event, encode_event
from schemas.items import ItemVector, encode_item_vector
from streams.core.errors import StorageError
from streams.core.settings import Settings
from streams.offline.log_slices import newest_slice, slice_of, write_slice, write_topic
from streams.processes import archiver as archiving
from streams.processes.archiver import Writer, run
from streams.transport.topics import asking, create
from training.batches import batch, epoch
from training.log import EventLog
from training.sources import read_unified
from training.splits import by_time

pytestmark = pytest.mark.broker
TOWER = load_tower("static")
NAMES = {1: "shop", 2: "news"}
START, DAY = 1_700_000_000_000, 86_400_000


def settings_of(bootstrap: str, folder: Path, **archive: object) -> Settings:
    prefix = f"a{time.time_ns()}"
    platforms = [{"name": n, "code": c, "preset": "plain", "topic": f"{prefix}.{n}", "items_topic": f"{prefix}.{n}.i"} for c, n in NAMES.items()]
    settings = Settings(
        kafka={"bootstrap": bootstrap}, worker={"prefix": prefix, "partitions": 3}, platforms=platforms,
        archive={"url": str(folder / "archive"), "flush_s": 0.05, "batch_records": 40, **archive},
    )  # fmt: skip
    with asking(settings.kafka) as client:
        create(client, settings)
    return settings


def send(settings: Settings, first: int, last: int) -> None:
    """Events number first to last, and items, one of which is written again, and one goes, in every lot."""
    producer, r = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap), np.random.default_rng(first)
    vectors = TOWER.encode([f"Green tea number {n}" for n in range(20)]).astype("<f2")
    for n in [*range(20), first % 7]:
        name = f"{NAMES[1 + n % 2]}:i{n}"
        item = ItemVector(name, f"Green tea {first}", ("tea",), TOWER.space_id, TOWER.dims, vectors[(n + first) % 20].tobytes(), START + n)
        producer.send(settings.topic("item-vectors"), encode_item_vector(item), name.encode())
    producer.send(settings.topic("item-vectors"), None, b"shop:i18")
    for n in range(first, last):
        user, value = f"u{n % 23}", None if n % 3 else float(r.normal())
        event = Event(1, user, START + int(r.integers(0, 5 * DAY)), n, 1 + n % 2, 1 + n % 9, f"i{n % 18}", user, value, None, "t", 0, n)
        producer.send(settings.topic("events"), encode_event(event), user.encode())
    producer.close()


def same(a: EventLog, b: EventLog) -> None:
    """Two logs, and the examples made of them, are the same to the byte."""
    assert a.rows.tobytes() == b.rows.tobytes()
    assert (a.users, a.catalogue.names, a.items.tolist()) == (b.users, b.catalogue.names, b.items.tolist())
    np.testing.assert_array_equal(a.catalogue.table.vectors, b.catalogue.table.vectors)
    recipe = Recipe(max_len=8, batch_users=8)
    split = by_time(a, 0.2, 0.2)
    for n, users in enumerate(epoch(a, split, recipe, 0)):
        x, y = (batch(log, by_time(log, 0.2, 0.2), recipe, users, (0, n)) for log in (a, b))
        for name, array in x.inputs.items():
            assert array.tobytes() == y.inputs[name].tobytes(), name
        assert x.target.tobytes() == y.target.tobytes()


def from_topic(settings: Settings, folder: Path) -> EventLog:
    folder.mkdir()
    write_topic(settings, "topic", folder)
    return read_unified(folder, NAMES, TOWER)


def test_same_examples(bootstrap: str, tmp_path: Path) -> None:
    """Archived in several goes, merged between them, training reads from the archive what it reads from the topic; so does a slice, from both."""
    settings = settings_of(bootstrap, tmp_path)
    for lot in range(3):
        send(settings, 400 * lot, 400 * lot + 400)
        assert run(settings, once=True) == 422
    assert run(settings, once=True) == 0
    whole = from_topic(settings, tmp_path / "topic")
    assert len(whole.rows) == 1200
    assert "shop:i18" not in whole.catalogue.names
    same(whole, read_unified(settings.archive.url, NAMES, TOWER))
    parts = {}
    for source in ("topic", "archive"):
        (tmp_path / f"slice-{source}").mkdir()
        part = slice_of(newest_slice(settings, source, 700).as_json())
        write_slice(settings, part, tmp_path / f"slice-{source}")
        parts[source] = part, read_unified(tmp_path / f"slice-{source}", NAMES, TOWER)
    assert parts["topic"][0].events == parts["archive"][0].events
    assert 500 < parts["topic"][0].count <= 702
    same(parts["topic"][1], parts["archive"][1])


@pytest.mark.parametrize("left", [0, 1, 2, 5, 13, 30])
def test_killed(bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """Killed before any file of any batch, the archive holds every record once after the next run."""

    class Killed(Exception):
        pass

    class Dying(Writer):
        def put(self, name: str, data: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            super().put(name, data)

    settings = settings_of(bootstrap, tmp_path)
    send(settings, 0, 300)
    monkeypatch.setattr(archiving, "Writer", Dying)
    with pytest.raises(Killed):
        run(settings, once=True)
    monkeypatch.undo()
    run(settings, once=True)
    same(from_topic(settings, tmp_path / "topic"), read_unified(settings.archive.url, NAMES, TOWER))
    batches = Archive(settings.archive.url).batches("events")
    assert sum(b.rows for b, _ in current(batches)) == 300


def test_another_topic(bootstrap: str, tmp_path: Path) -> None:
    """An archive of another topic is refused, and so is a second archiver."""
    settings = settings_of(bootstrap, tmp_path)
    run(settings, once=True)
    other = settings_of(bootstrap, tmp_path)
    with pytest.raises(ArchiveError, match=r"is of topic a\d+\.events .* take another folder"):
        run(other, once=True)
    with archiving.alone(settings.archive.url), pytest.raises(StorageError, match=r"archive\.url = .*: another archiver runs in it"):
        run(settings, once=True)


def test_sigterm(bootstrap: str, tmp_path: Path) -> None:
    """At SIGTERM what has come is written, and the exit status is 0; started again it goes on after it."""
    settings = settings_of(bootstrap, tmp_path, flush_s=3600.0, batch_records=1_000_000)
    send(settings, 0, 300)
    names = {"KAFKA__BOOTSTRAP": bootstrap, "WORKER__PREFIX": settings.worker.prefix, "WORKER__PARTITIONS": "3", "ARCHIVE__URL": settings.archive.url}
    environment = {**os.environ, **{f"CURRENTS_{k}": v for k, v in names.items()}, "CURRENTS_ARCHIVE__FLUSH_S": "3600"}
    code = "import streams.processes.archiver as a; take = a.Archiver._take\n"
    code += "def said(self, tp, records):\n    take(self, tp, records); print(len(records), flush=True)\n"
    code += "a.Archiver._take = said\nfrom streams.commands.main import main; import sys; sys.argv = ['currents', 'archive']; main()"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    taken = 0
    assert process.stdout is not None
    while taken < 322:
        line = process.stdout.readline()
        assert line, process.communicate()
        taken += int(line)
    process.send_signal(signal.SIGTERM)
    said, err = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, '{"archived":322}\n'), err
    assert run(settings, once=True) == 0
    same(from_topic(settings, tmp_path / "topic"), read_unified(settings.archive.url, NAMES, TOWER))
