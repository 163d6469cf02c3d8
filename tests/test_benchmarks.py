"""What the benchmarks reckon."""

from benchmarks.report import costs, headlines, table
from benchmarks.soak import Ages, Look, thirds
from tests.test_docs import TEXT


def test_tables() -> None:
    """README and docs/figures.md show the tables that the results in the repository give."""
    assert TEXT["README.md"].split("<!-- figures -->\n")[1].split("<!-- end of figures -->")[0] == headlines()
    assert TEXT["figures.md"].split("<!-- figures -->\n")[1].split("<!-- end of figures -->")[0] == table()


def test_costs() -> None:
    """A part that all encoders share stands under each, what an encoder adds under its own."""
    by_encoder = {
        "whole job": (90.0, 300.0),
        "broker": (9.0, 8.0),
        "events/s per core": (11111, 3333),
        "Kafka client, Faust and the rest": (50.0, 60.0),
    }
    figures: dict[str, object] = {"fold, stage": 5.0, "encode, baseline, stage": 2.0, "encode, preset s, stage": 200.0}
    figures |= {f"{what}, {name}": v for what, values in by_encoder.items() for name, v in zip(("baseline", "preset s"), values, strict=True)}
    figures["events/s per GPU, encoder alone"] = {"preset s": "none here"}
    lines = costs({"figures": figures, "command": "c", "date": "d", "machine": "m", "note": "n"}).splitlines()
    assert "| fold | 5.0 | 5.0 |" in lines
    assert "| encode | 2.0 | 200.0 |" in lines
    assert "| **whole job** | 90.0 | 300.0 |" in lines
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
