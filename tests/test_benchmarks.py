"""What the benchmarks reckon."""

from benchmarks.soak import Ages, Look, thirds


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
