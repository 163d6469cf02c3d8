"""A short fuzz of a running cluster."""

from pathlib import Path

import pytest

from tests.fuzz.fuzz_cluster import Fuzz

pytestmark = [
    pytest.mark.broker,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning"),  # a thread's client draws of `random`, not a strategy
]


def test_fuzz(bootstrap: str, tmp_path: Path) -> None:
    """After random and mutated rows in every topic, windows and profiles are the fold of what is valid."""
    fuzz = Fuzz(bootstrap, tmp_path, 1)
    try:
        wrong = fuzz.run(30)
    finally:
        fuzz.cluster.stop()
    assert fuzz.rows > 1000
    assert not any(wrong.values()), wrong
