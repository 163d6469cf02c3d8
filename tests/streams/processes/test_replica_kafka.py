"""Read replicas beside a worker under load."""

import time
from collections.abc import Callable

import pytest

from schemas.profiles import decode_profile
from streams.audit.windows import latest
from streams.core.clock import now_ms
from streams.state.tablet import Tablet
from testkit.cluster import Cluster, Load, wait_for
from testkit.processes import ReplicaProcess

pytestmark = pytest.mark.kafka


def test_killed_under_load(cluster: Callable[..., Cluster]) -> None:
    """Two replicas, one of them killed under load, end with the last row of every user; so does one with offsets that the log never had."""
    c = cluster()
    c.items()
    load = Load(c, events=1_000_000, rate=500)
    worker, steady = c.worker("a").ready(), c.replica("steady")
    for life in range(2):
        killed = c.replica("killed")
        killed.ready()
        time.sleep(1 + life)
        killed.kill()
    load.stop()
    killed = c.replica("killed")
    c.drain()
    assert worker.terminate() == 0
    rows = latest(c.log("profiles"))
    everything = {user.decode(): decode_profile(row).updated_at for user, row in rows.items()}
    assert len(everything) > 1000
    for replica in (steady, killed):
        ends_with(replica, everything)
        assert replica.get("/healthz").json()["behind"]["records"] == 0
        assert replica.terminate() == 0
    for path in steady.data_dir.glob("tablet-*"):
        tablet = Tablet(0, path)
        tablet.write(profiles=[(b"nobody", b"x")], offsets={c.settings.topic("profiles"): 10**9}, now_ms=now_ms())
        tablet.close()
    steady = c.replica("steady")
    ends_with(steady, everything)
    assert steady.get("/v1/profiles/nobody").status_code == 404
    assert steady.metric("currents_followed_rows_total") >= len(everything)
    assert steady.terminate() == 0


def ends_with(replica: ReplicaProcess, everything: dict[str, int]) -> None:
    """Wait until it answers just that of every user."""

    def answers() -> bool:
        users, found = list(everything), dict[str, int]()
        for start in range(0, len(users), 1000):
            response = replica.post("/v1/profiles:batchGet", {"user_ids": users[start : start + 1000]})
            if response.status_code != 200:
                return False
            found |= {row["user_id"]: row["updated_at"] for row in response.json()["profiles"]}
        return found == everything

    replica.ready()
    wait_for("the replica to have the last row of every user", answers)
