"""A worker whose brokers are away says so everywhere, and quietly."""

import time
from pathlib import Path

import pytest

from testkit.apache import ApacheKafka
from testkit.cluster import Cluster, wait_for
from testkit.load import event_row

pytestmark = pytest.mark.kafka
QUIET_S, LINES = 20, 8


def test_brokers_away(tmp_path: Path) -> None:
    """Health, readiness, metrics and answers tell that the brokers are away, the log in a few lines; when they come back all is as before."""
    with ApacheKafka() as kafka:
        c = Cluster(kafka.bootstrap, "away", tmp_path, {"worker": {"max_away_s": 8.0}})
        worker = c.worker("one").ready()
        try:
            c.send(c.settings.platforms[0].topic, [event_row("ann")])
            wait_for("a profile", lambda: worker.get("/v1/profiles/ann").status_code == 200)
            assert "x-currents-behind" not in worker.get("/v1/profiles/ann").headers
            c.drain()
            kafka.stop()
            before = len(worker.says().splitlines())
            wait_for("health to tell", lambda: worker.get("/healthz").json()["status"] == "brokers away")
            assert worker.get("/v1/profiles/ann").headers["x-currents-behind"].startswith("records=0, seconds=")
            assert "currents_lag_records NaN" in worker.get("/metrics").text
            wait_for("readiness to tell", lambda: worker.get("/readyz").status_code == 503)
            assert "brokers have been away" in worker.get("/readyz").json()["error"]
            time.sleep(QUIET_S)
            said = worker.says().splitlines()[before:]
            assert len(said) <= LINES, said[:40]
            kafka.start()
            worker.ready()
            c.send(c.settings.platforms[0].topic, [event_row("bea")])
            wait_for("a profile", lambda: worker.get("/v1/profiles/bea").status_code == 200)
            wait_for("health to tell", lambda: worker.get("/healthz").json()["status"] == "ok")
        finally:
            c.stop()
