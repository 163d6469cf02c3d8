"""docs/scale.md: its tables are what its script computes, its manifest is what settings and image know."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.scale import USERS, Assumed, measured, plan, tables
from tests.project.test_docs import KEYS, TEXT, marked

PAGE = TEXT["scale.md"]
FIGURES = {"baseline": 20_000.0, "s": 4000.0, "stored": 2500.0, "raw": 5000.0, "restore": 100_000.0}


def test_tables() -> None:
    """The page shows the tables that the results in the repository give."""
    assert marked("scale.md", "scale") == tables()


def test_sources() -> None:
    """Every figure that is used names a file of results that exists."""
    found = measured()
    assert {"baseline", "stored", "raw", "restore"} <= found.keys()
    assert all((Path(__file__).parents[2] / "benchmarks" / "results" / f.source).exists() for f in found.values())


def test_by_hand() -> None:
    """Ten million users: events, workers and disk as one computes them on paper."""
    p = plan(10_000_000, FIGURES, Assumed(active=0.1, events=86.4, peak=4, load=0.5, dirty=2, replication=3, restore_s=100))
    assert p["events/s, mean"] == pytest.approx(1000)
    assert p["workers for the peak, preset S on CPUs"] == 2
    assert p["workers, so that an emptied one is back in 100 s"] == 2
    assert p["GPUs for the peak, preset S"] is None
    assert p["changelogs on all brokers, GiB"] == pytest.approx(10e6 * 5000 * 6 / 2**30)


@pytest.mark.parametrize("users", USERS)
def test_more_needs_more(users: int) -> None:
    """Twice the users never need less of anything that is counted for all of them."""
    a, b = plan(users, FIGURES, Assumed()), plan(2 * users, FIGURES, replace(Assumed()))
    for name in ("events/s, peak", "workers planned with the baseline", "changelogs on all brokers, GiB", "between brokers at peak, MiB/s"):
        assert (b[name] or 0) >= (a[name] or 0) > 0


def test_manifest() -> None:
    """The StatefulSet's variables are settings, its probes are routes, its volume is the image's data folder."""
    service, workers = yaml.safe_load_all(re.findall(r"```yaml\n(.*?)```", PAGE, re.S)[0])
    (worker,) = workers["spec"]["template"]["spec"]["containers"]
    names = {e["name"] for e in worker["env"]} - {"POD", "CURRENTS_CONFIG"}
    assert names <= set(KEYS.values())
    assert {worker[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")} == {"/healthz", "/readyz"}
    image = (Path(__file__).parents[2] / "docker" / "Dockerfile").read_text()
    assert f"VOLUME {worker['volumeMounts'][0]['mountPath']}\n" in image
    assert f"EXPOSE {service['spec']['ports'][0]['port']}\n" in image
    assert service["metadata"]["name"] == workers["spec"]["serviceName"]
