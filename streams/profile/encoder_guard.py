"""Retries a failing encoder with growing pauses. No window is skipped meanwhile. A fallback encoder takes over if the settings name one."""

import logging
import time
from collections.abc import Callable

import numpy as np

from encoder.base import Encoder

log = logging.getLogger("currents.encoder")
FIRST_S, LONGEST_S = 0.25, 5.0  # pause after the first failure; upper bound of the pause, which doubles with each failure


class EncoderDown(Exception):
    """The encoder made no vectors. Try again after `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"the encoder fails; again in {wait_s:.1f} s")
        self.wait_s = wait_s


class Guard:
    """Owns the retries of an encoder, and uses `fallback` once the encoder has failed for `after_s` seconds. Call it on the encoding thread.

    Calls `failed` with the encoder's version at each failure. Calls `stepped_in` with the number of windows each time the fallback encodes them.
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
        self._failing_since: float | None = None  # clock time of the first failure since the last success
        self._failures, self._retry_at = 0, 0.0

    def failing_s(self) -> float:
        """Seconds since the encoder began to fail; 0 while it works."""
        since = self._failing_since
        return 0.0 if since is None else max(self._clock() - since, 1e-3)

    def __call__(self, encoder: Encoder, encode: Callable[[Encoder], np.ndarray], strict: bool = False) -> tuple[np.ndarray, Encoder]:
        """Return the vectors and the encoder that made them. `strict`: never use the fallback. Raises EncoderDown."""
        if self._failing_since is None or self._clock() >= self._retry_at:
            try:
                vectors = encode(encoder)
                if not np.isfinite(vectors).all():
                    raise ValueError("made vectors that are not finite")
            except Exception as error:  # a GPU, ONNX Runtime and torch raise many types, and no failure may lose an event
                self._record_failure(encoder, error)
            else:
                self._record_success(encoder)
                return vectors, encoder
        now, since = self._clock(), self._failing_since or 0.0
        if self.fallback is None or strict:
            raise EncoderDown(max(0.0, self._retry_at - now))
        if now < since + self._after_s:
            raise EncoderDown(max(0.0, min(self._retry_at, since + self._after_s) - now))
        vectors = encode(self.fallback)
        self._stepped_in(len(vectors))
        return vectors, self.fallback

    def _record_failure(self, encoder: Encoder, error: Exception) -> None:
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        pause = min(LONGEST_S, FIRST_S * 2.0 ** min(self._failures, 16))
        self._failures, self._retry_at = self._failures + 1, now + pause
        self._failed(encoder.version)
        done = "nothing is acknowledged until it works" if self.fallback is None else f"{self.fallback.version} steps in after {self._after_s:g} s"
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        log.error(
            "encoder %s failed (%d times in %.1f s): %s; again in %.1f s, %s",
            encoder.version,
            self._failures,
            now - self._failing_since,
            why,
            pause,
            done,
        )

    def _record_success(self, encoder: Encoder) -> None:
        if self._failing_since is not None:
            log.warning("encoder %s works again after %.1f s and %d failures", encoder.version, self.failing_s(), self._failures)
        self._failing_since, self._failures = None, 0
