"""Encoders that change while workers die, on Apache Kafka."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from schemas.profiles import decode_profile
from schemas.releases import Release
from streams.audit import windows as verify
from streams.releases.release_log import announce
from testkit.bundles import variant
from testkit.checking import profiles_wrong, read
from testkit.cluster import RIGHT, Cluster, Load, WorkerProcess, wait_for

pytestmark = pytest.mark.kafka
LIVES = 4


def switched(worker: WorkerProcess) -> bool:
    return worker.metric("currents_swap_seconds_count") > 0


def test_swaps_and_kills(cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    """Swaps under load while a worker is killed around them: no event lost, every profile is what the encoder it names makes of its window."""
    c = cluster()
    c.items()
    releases = [variant(tmp_path / f"v{n}", f"v{n}", n) for n in range(3)]

    def tell(release: Release) -> None:
        asyncio.run(announce(c.settings.kafka, c.settings.topic("releases"), "serving", release))

    load = Load(c, events=10_000_000, rate=150, users=300)
    for life in range(LIVES):
        worker = c.worker("a").ready()
        tell(releases[(life + 1) % 3])  # it begins with the one before
        wait_for("a switch", partial(switched, worker))
        tell(releases[life % 3])
        time.sleep(0.3 + life * 0.5)  # while it loads, between, and while users go over
        worker.kill()
    worker = c.worker("a").ready()
    load.stop()
    c.drain()
    last = releases[(LIVES - 1) % 3]

    def settled() -> bool:
        found = verify.latest(read(c.settings, "profiles"))
        return all(decode_profile(p).encoder_version == last.version for p in found.values())

    wait_for("every user to go over", settled)
    assert worker.get("/healthz").json()["encoders"]["serving"] == last.version
    c.drain()
    assert worker.terminate() == 0
    found = c.check(worker.data_dir)
    windows, _ = verify.offline_windows(read(c.settings, "events"), {1: "shop"}, c.settings.encoding.policy)
    profiles = verify.latest(read(c.settings, "profiles"))
    found["profiles_wrong"] = profiles_wrong(c.settings, windows, profiles, tmp_path, ["baseline", *(r.bundle for r in releases)])
    assert found == RIGHT
