"""What the benchmarks reckon."""

import sys
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest

from benchmarks import common, report
from benchmarks.cost import parts
from benchmarks.job import Measured
from benchmarks.report import SHORT, costs, headlines, table
from benchmarks.soak import Ages, Look, thirds
from tests.project.test_docs import marked


def test_tables() -> None:
    """README and docs/figures.md show the tables that the results in the repository give."""
    assert marked("README.md", "figures") == headlines(SHORT)
    assert marked("figures.md", "headlines") == headlines()
    assert marked("figures.md", "figures") == table()


def test_headlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure that is 0 is told as it is, one that a run of other sizes did not take as not measured, a benchmark that did not run not at all."""
    row = {"figures": {"events lost": 0, "windows wrong": 0, "most MiB": 650}, "command": "c", "date": "d"}
    (tmp_path / "overload-10x-300s.json").write_bytes(orjson.dumps(row))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "| **0; 0; 650; not measured** |" in headlines()
    assert len(headlines().splitlines()) == 3


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result says the command that was given, where it was given anything."""
    main = SimpleNamespace(__spec__=SimpleNamespace(name="benchmarks.peers.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["-m"])
    assert common.command("peers") == "make bench ONLY=peers"
    monkeypatch.setattr(sys, "argv", ["-m", "--systems", "a b"])
    assert common.command("peers") == "python -m benchmarks.peers --systems 'a b'"
    main.__spec__.name = "pytest.__main__"
    assert common.command("peers") == "make bench ONLY=peers"


def test_costs() -> None:
    """What is done for an event and what is done for a window add up, with the rest, to the whole job; a column an encoder."""
    by_stage = {"mapping": 8.0, "fold": 4.0, "featurize": 6.0, "portrait": 70.0, "rocksdb": 20.0, "encode, baseline": 10.0, "encode, preset s": 400.0}
    jobs = {"baseline": Measured(9000, 110.0, 30.0, 0.5), "preset s": Measured(2000, 500.0, 90.0, 0.75)}
    figures: dict[str, object] = {name: parts(by_stage, name, m) for name, m in jobs.items()}
    figures["events/s per GPU, encoder alone"] = {"preset s": "none here"}
    lines = costs({"figures": figures, "command": "c", "date": "d", "machine": "m", "note": "n"}).splitlines()
    assert "| fold | 4.0 | 4.0 |" in lines
    assert "| portrait | 35.0 | 52.5 |" in lines
    assert "| encode | 5.0 | 300.0 |" in lines
    assert "| Kafka client, Faust and the rest | 45.0 | 116.0 |" in lines
    assert "| whole job | 110.0 | 500.0 |" in lines
    assert "| events/s per GPU, encoder alone |  | none here |" in lines


def test_ages() -> None:
    """The 99th percentile is that of the events since the last look, at a bucket's upper edge."""
    ages = Ages()
    assert ages.p99_ms({0.01: 98.0, 0.1: 100.0, float("inf"): 100.0}) == 100.0
    assert ages.p99_ms({0.01: 298.0, 0.1: 300.0, float("inf"): 300.0}) == 10.0
    assert ages.p99_ms({0.01: 298.0, 0.1: 300.0, float("inf"): 300.0}) == 0.0


def test_thirds() -> None:
    """What grows shows as a difference between the first and the last third, the start left out."""
    looks = [Look(m, 900.0 if m < 10 else 100.0 + m, 50, 1.0, 0.0, 10.0, 1.0) for m in range(60)]
    found = thirds(looks, 10)
    assert found["mib"] == {"first third": 117.5, "last third": 151.5}
    assert found["handles"] == {"first third": 50, "last third": 50}
