"""What happens while an encoder fails."""

import logging
from typing import Any

import numpy as np
import pytest

from encoder.baseline import Baseline
from streams.profile.encoder_guard import FIRST_S, LONGEST_S, EncoderDown, Guard

MAIN, SPARE = Baseline(2, "main"), Baseline(2, "spare", half_life=5)


class Scene:
    """A guard, a clock, and an encoder that fails when told to."""

    def __init__(self, fallback: Baseline | None = None, after_s: float = 0.0) -> None:
        self.now, self.asked, self.failures, self.made = 100.0, 0, 0, 0
        self.fails: Exception | None = None
        self.vectors = np.ones((3, 2), np.float32)
        self.guard = Guard(fallback, after_s, self._failed, self._made, lambda: self.now)

    def _failed(self, version: str) -> None:
        assert version == MAIN.version
        self.failures += 1

    def _made(self, n: int) -> None:
        self.made += n

    def _encode(self, encoder: Any) -> np.ndarray:
        if encoder is SPARE:
            return np.zeros((3, 2), np.float32)
        self.asked += 1
        if self.fails:
            raise self.fails
        return self.vectors

    def ask(self, strict: bool = False) -> Any:
        """Who made the vectors, or how long to wait."""
        try:
            return self.guard(MAIN, self._encode, strict)[1]
        except EncoderDown as down:
            return down.wait_s


def test_asked_again_with_growing_pauses() -> None:
    """A failing encoder is asked at once, then after pauses that double up to the longest, and never in between; it comes back by itself."""
    s = Scene()
    assert s.ask() is MAIN
    assert s.guard.failing_s() == 0
    s.fails = RuntimeError("no GPU")
    pauses = []
    for _ in range(8):
        pauses.append(s.ask())
        asked = s.asked
        s.now += pauses[-1] / 2
        assert s.ask() == pauses[-1] / 2
        assert s.asked == asked
        s.now += pauses[-1] / 2
    assert pauses == [min(LONGEST_S, FIRST_S * 2**n) for n in range(8)]
    assert s.guard.failing_s() == sum(pauses)
    assert (s.failures, s.asked) == (8, 9)
    s.fails = None
    assert s.ask() is MAIN
    assert s.guard.failing_s() == 0
    s.fails = RuntimeError("again")
    assert s.ask() == FIRST_S


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    """Vectors that are not finite are a failure."""
    s = Scene()
    s.vectors = np.array([[1, 0], [bad, 0], [0, 1]], np.float32)
    assert s.ask() == FIRST_S
    assert s.failures == 1


def test_fallback_steps_in() -> None:
    """After so long of failing the fallback makes the vectors, also between attempts; the encoder is asked on, and takes over again."""
    s = Scene(SPARE, after_s=2.0)
    s.fails = RuntimeError("no GPU")
    waited = 0.0
    while (answer := s.ask()) is not SPARE:
        s.now += answer
        waited += answer
    assert waited == 2.0
    asked = s.asked
    assert s.ask() is SPARE
    assert s.asked == asked
    s.now += LONGEST_S
    assert s.ask() is SPARE
    assert (s.asked, s.made) == (asked + 1, 9)
    s.now += LONGEST_S
    s.fails = None
    assert s.ask() is MAIN


def test_strict() -> None:
    """Who wants the encoder itself waits for it, whatever has stepped in."""
    s = Scene(SPARE, after_s=0.0)
    s.fails = RuntimeError("no GPU")
    assert s.ask() is SPARE
    assert s.ask(strict=True) == FIRST_S
    s.now += FIRST_S
    s.fails = None
    assert s.ask(strict=True) is MAIN


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """Every failure is one line with the encoder, the error and what happens now; so is its end."""
    s = Scene()
    s.fails = RuntimeError("CUDA error:\nlaunch failure")
    with caplog.at_level(logging.WARNING, "currents.encoder"):
        s.ask()
        s.now += FIRST_S
        s.fails = None
        s.ask()
    failed, works = (r.getMessage() for r in caplog.records)
    for words in (MAIN.version, "RuntimeError: CUDA error: launch failure", "nothing is acknowledged"):
        assert words in failed
    assert "works again" in works
