"""An encoder that fails: it is asked again with growing pauses and nothing is passed over meanwhile; where the settings say so another steps in."""

import logging
import time
from collections.abc import Callable

import numpy as np

from encoder.base import Encoder

log = logging.getLogger("currents.encoder")
FIRST_S, LONGEST_S = 0.25, 5.0  # pauses between attempts: the first, and the longest that doubling it leads to


class EncoderDown(Exception):
    """No vectors now: ask again after `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"the encoder fails; again in {wait_s:.1f} s")
        self.wait_s = wait_s


class Guard:
    """Asks an encoder, and `fallback` once the encoder has failed for `after_s`. Call it on the encoding thread.

    `failed` is called with the encoder's version at each failure, `stepped_in` with the number of windows whenever the fallback made their vectors.
    """

    def __init__(
        self,
        fallback: Encoder | None = None,
        after_s: float = 0.0,
        failed: Callable[[str], None] = lambda version: None,
        stepped_in: Callable[[int], None] = lambda n: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fallback, self._after_s, self._failed, self._stepped_in, self._clock = fallback, after_s, failed, stepped_in, clock
        self._since: float | None = None  # when the first of the failures that go on was
        self._failures, self._again_at = 0, 0.0

    def failing_s(self) -> float:
        """For how long the encoder has failed; 0 while it works."""
        since = self._since
        return 0.0 if since is None else max(self._clock() - since, 1e-3)

    def __call__(self, encoder: Encoder, encode: Callable[[Encoder], np.ndarray], strict: bool = False) -> tuple[np.ndarray, Encoder]:
        """(vectors, whoever made them). `strict`: of no other encoder. Raises EncoderDown."""
        if self._since is None or self._clock() >= self._again_at:
            try:
                vectors = encode(encoder)
                if not np.isfinite(vectors).all():
                    raise ValueError("made vectors that are not finite")
            except Exception as error:  # a GPU, ONNX Runtime and torch have many ways to fail, and none may lose an event
                self._note(encoder, error)
            else:
                self._works(encoder)
                return vectors, encoder
        now, since = self._clock(), self._since or 0.0
        if self.fallback is None or strict:
            raise EncoderDown(max(0.0, self._again_at - now))
        if now < since + self._after_s:
            raise EncoderDown(max(0.0, min(self._again_at, since + self._after_s) - now))
        vectors = encode(self.fallback)
        self._stepped_in(len(vectors))
        return vectors, self.fallback

    def _note(self, encoder: Encoder, error: Exception) -> None:
        now = self._clock()
        self._since = now if self._since is None else self._since
        pause = min(LONGEST_S, FIRST_S * 2.0 ** min(self._failures, 16))
        self._failures, self._again_at = self._failures + 1, now + pause
        self._failed(encoder.version)
        done = "nothing is acknowledged until it works" if self.fallback is None else f"{self.fallback.version} steps in after {self._after_s:g} s"
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        log.error(
            "encoder %s failed (%d times in %.1f s): %s; again in %.1f s, %s", encoder.version, self._failures, now - self._since, why, pause, done
        )

    def _works(self, encoder: Encoder) -> None:
        if self._since is not None:
            log.warning("encoder %s works again after %.1f s and %d failures", encoder.version, self.failing_s(), self._failures)
        self._since, self._failures = None, 0
