"""Unusable rows in every topic of Currents' own, while worker, replica and archiver run."""

import asyncio
import shutil
from collections.abc import Callable
from itertools import islice

import pytest

from schemas.deadletters import encode_dead_letter, letter_of
from schemas.releases import Release, encode_release
from schemas.rows import bad_items, bad_profiles, bad_windows
from streams.audit.windows import latest
from streams.ingest.dead_letter_log import dead_letters
from streams.ingest.redrive import redrive
from streams.offline.log_slices import write_topic
from streams.processes.archiver import run
from testkit import hostile
from testkit.checking import usable
from testkit.cluster import RIGHT, Cluster, Load, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
RELEASE = Release("v1", "s", "file:///dev/zero", "0" * 64, "serving", 1.0, "", 1, "test", "")


def spoil(c: Cluster) -> dict[str, int]:
    """Write unusable rows into every topic; how many into each."""
    logs = {name: c.log(name) for name in ("windows", "profiles", "item-vectors", "events")}
    good = {name: sorted(latest(usable(logs[name], bad)).items()) for name, bad in (("windows", bad_windows), ("profiles", bad_profiles))}
    good["item-vectors"] = sorted(latest(usable(logs["item-vectors"], bad_items)).items())
    letter = encode_dead_letter(letter_of(logs["events"][0], "test", "test", "shop", 1))
    good["dead-letters"], good["releases"] = [(b"k", letter)] * 20, [(b"serving", encode_release(RELEASE))] * 20
    found = {name: [row for row in islice(hostile.rows(rows), 240) if row[0] is not None] for name, rows in good.items()}  # compacted: keys alone
    found |= {name: [(k, v) for k in (*hostile.KEYS, b"run", b"u1") for v in (*hostile.NOISE, None)] for name in ("redriven", "events")}
    sent = {}
    for name, rows in found.items():
        n = 1 if name == "releases" else c.partitions
        sent[name] = asyncio.run(hostile.write(c.settings, c.settings.topic(name), rows, n))
    return sent


def test_hostile_rows(cluster: Callable[..., Cluster], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every process leaves unusable rows out, counts them and goes on; windows and profiles are the fold of what is valid, after a restart too."""
    c = cluster(serve={"items": True})
    c.items(200)
    load = Load(c, events=6000, rate=3000, users=400)
    load.join()
    worker, replica = c.worker("a").ready(), c.replica("r").ready()
    c.drain()
    spoil(c)
    load = Load(c, events=6000, rate=3000, users=400, seed=8)
    load.join()
    c.drain()
    wait_for("the worker to put users right", lambda: worker.metric("currents_repaired_total") > 0)
    worker.ready()
    for process, topics in ((worker, ("windows", "profiles", "item-vectors", "releases")), (replica, ("profiles", "item-vectors"))):
        for name in topics:
            label = f'currents_rejected_rows_total{{reason="key",topic="{c.settings.topic(name)}"}}'
            assert name == "releases" or process.metric(label) > 0, name
        assert process.get("/healthz").json()["status"] == "ok"
        assert "left out" in process.says()
    assert worker.terminate() == 0
    shutil.rmtree(worker.data_dir)
    worker = c.worker("a").ready()
    c.drain()
    users = sorted(latest(usable(c.log("profiles"), bad_profiles)))[:50]
    wait_for("the replica", replica.is_ready)
    for user in users:
        path = f"/v1/profiles/{user.decode()}"
        assert replica.get(path).json()["events"] == worker.get(path).json()["events"]
    assert worker.terminate() == 0
    assert replica.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT
    folder = tmp_path_factory.mktemp("slice")
    write_topic(c.settings, "topic", folder)
    archive = c.settings.model_copy(update={"archive": c.settings.archive.model_copy(update={"url": str(folder / "archive")})})
    assert run(archive, once=True) > 0
    assert len(list(dead_letters(c.settings))) > 0
    assert asyncio.run(redrive(c.settings, True, True, lambda n: None))["mended"] == 0
