"""The job of every system: fold an event of the unified topic into its user's window, and make a profile of the window.

All systems use Currents' fold, featurizer, encoder and bytes, so that only the stream processing differs. Needs neither Faust nor Quix Streams.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from encoder.base import Encoder
from encoder.features import Features, ItemTable, featurize, fitted
from encoder.runtime import load_encoder
from schemas.events import decode_event
from schemas.items import item_name
from schemas.profiles import VECTOR_TYPE, Columns, Profile, encode_profile, pack_maker, pack_profiles, pack_vector
from schemas.windows import Policy, fold, row_of

PLATFORM = "shop"
POLICY = Policy(64)
NO_INTERESTS = b"\x90"  # an empty MessagePack array: only Currents has portraits, so all systems run without


@dataclass(frozen=True)
class Spec:
    """Parameters of one run of one system. The run's process reads them as JSON."""

    bootstrap: str
    topic: str
    """The unified topic, filled before the run."""
    events: int
    partitions: int
    prefix: str
    """Prefix of the system's topics and group."""
    folder: str
    """Folder of the system's state."""
    items: str
    """An .npz file of item vectors. Currents writes the file from the items sent to it; the other systems read the file."""
    model: str = ""
    """Encoder bundle; empty for the stub."""
    batch: int = 0
    """Quix Streams only: number of windows in a batch made by hand; 0 encodes one by one."""

    @property
    def windows(self) -> str:
        """The topic with a bare loop's windows."""
        return f"{self.prefix}.windows"

    @property
    def profiles(self) -> str:
        """The topic of profiles."""
        return f"{self.prefix}.profiles"


def read_spec(path: str) -> Spec:
    """Read the file that `compare` wrote."""
    return Spec(**json.loads(Path(path).read_text()))


class Stub:
    """An encoder without cost, so that a benchmark measures the stream processing only."""

    version, space_id, dims, max_len, projected = "stub", "stub", 192, 32, None

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        """Return the same vector for every user."""
        return np.full((len(features.lengths), self.dims), self.dims**-0.5, np.float32)

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Return the vectors unchanged."""
        return vectors


class Job:
    """Owns the job's functions, without a stream."""

    def __init__(self, spec: Spec) -> None:
        with np.load(spec.items) as stored:
            self.table = ItemTable(stored["vectors"].shape[1], len(stored["keys"]) + 2)
            for key, vector in zip(stored["keys"].tolist(), stored["vectors"], strict=True):
                self.table.put(key, vector)
            space = str(stored["space"])
        self.encoder: Encoder = load_encoder(spec.model, space, self.table.dims, device="cpu") if spec.model else Stub()

    def fold(self, window: bytes | None, values: Sequence[bytes]) -> bytes:
        """Fold values of the unified topic into a window."""
        rows = []
        for value in values:
            event = decode_event(value)
            rows.append(row_of(event, item_name(PLATFORM, event.item_id)))
        return fold(window, rows, POLICY)

    def profiles(self, users: Sequence[bytes], windows: Sequence[bytes], received: Sequence[int]) -> list[bytes]:
        """Make packed profiles of a batch of windows."""
        at, encoder = time.time_ns() // 1_000_000, self.encoder
        features = featurize(windows, self.table, POLICY.most)
        vectors = encoder.encode(fitted(features, encoder.max_len, POLICY), self.table)
        last = features.rows["ts_ms"][np.arange(len(windows)), features.lengths - 1]
        unknown = (features.mask & (features.items == 0)).sum(1)
        if len(users) == 1:  # faster for one profile than the batch code
            profile = Profile(
                users[0].decode(), at, int(last[0]), received[0], int(features.lengths[0]), int(unknown[0]),
                encoder.version, encoder.space_id, encoder.dims, VECTOR_TYPE, pack_vector(vectors[0]),
            )  # fmt: skip
            return [encode_profile(profile)]
        maker = pack_maker(encoder.version, encoder.space_id, encoder.dims)
        made = map(pack_vector, vectors)
        received_at = np.array(received)
        return pack_profiles(Columns(users, last, received_at, features.lengths, unknown, repeat(maker), made, repeat(NO_INTERESTS)), at)


class Clock:
    """Owns the measurement of events a second, from the end of the first events to the end of the last ones."""

    def __init__(self, events: int) -> None:
        self._events, self.done, self._began, self._before, self._cpu, self._took, self._spent = events, 0, 0.0, 0, 0.0, 0.0, 0.0

    def count(self, n: int) -> bool:
        """Count n more handled events. Returns True once all events are handled."""
        now = time.perf_counter()
        self.done += n
        if not self.done:
            return False
        if not self._began:
            self._began, self._before, self._cpu = now, self.done, time.process_time()
        if self.done >= self._events and not self._took:
            self._took, self._spent = now - self._began, time.process_time() - self._cpu
        return self.done >= self._events

    def tell(self) -> None:
        """Print the figures as JSON on the stdout that Faust replaces, and end the process, because some systems do not stop their threads."""
        n = self.done - self._before
        print(
            json.dumps({"events_per_s": round(n / self._took), "cpu_us_per_event": round(self._spent / n * 1e6, 1)}), file=sys.__stdout__, flush=True
        )
        os._exit(0)
