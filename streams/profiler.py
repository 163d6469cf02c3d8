"""Windows → profiles, a whole batch at once: features, interest vectors, portraits, bytes."""

from collections.abc import Sequence

import numpy as np

from encoder.features import UNKNOWN, featurize, fitted
from encoder.runtime import Encoder
from schemas.events import BEHAVIOR_CODE
from schemas.profiles import VECTOR_TYPE, pack_profile
from schemas.windows import Policy
from streams.guard import Guard
from streams.items import ItemStore
from streams.portrait import Style, interests
from streams.settings import Settings
from streams.tablets import FALLBACK, key_bytes


def style_of(settings: Settings) -> Style:
    """The portrait's settings as arrays."""
    weights = np.zeros(256)
    for name, weight in settings.portrait.weights.items():
        weights[BEHAVIOR_CODE[name]] = weight
    platforms = {p.code: p.name for p in settings.platforms}
    return Style(settings.portrait.interests, settings.portrait.evidence, settings.portrait.half_life_h * 3_600_000, weights, platforms)


class Profiler:
    """A pure function of windows, items and encoder, but for the clock that is passed in and the guard. Call it on the encoding thread."""

    def __init__(self, encoder: Encoder, store: ItemStore, style: Style, policy: Policy, guard: Guard | None = None) -> None:
        self.encoder, self._store, self._style, self._policy = encoder, store, style, policy
        self._guard = guard or Guard()

    def __call__(
        self, users: Sequence[bytes], windows: Sequence[bytes], received: Sequence[int], at_ms: int, strict: bool = False
    ) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
        """B users and their windows -> B packed profiles, and (item key, user) for everything that they wait for.

        That is items without a vector, and the encoder itself (FALLBACK) where another one stepped in, which it does not if `strict`.
        `received`: when the newest event behind each update reached Kafka, ms. Raises EncoderDown.
        """
        table = self._store.table
        features = featurize(windows, table, self._policy.most)
        made, encoder = self._guard(self.encoder, lambda e: e.encode(fitted(features, e.max_len, self._policy), table), strict)
        vectors = made.astype("<f2")
        portraits = interests(features, self._store, self._style)
        b = np.arange(len(windows))
        last = features.rows["ts_ms"][b, features.lengths - 1].tolist()
        events = features.lengths.tolist()
        missing = features.mask & (features.items == UNKNOWN)
        unknown = missing.sum(1).tolist()
        rows = []
        for i, user in enumerate(users):
            head = (
                user.decode(), at_ms, last[i], received[i], events[i], unknown[i],
                encoder.version, encoder.space_id, encoder.dims, VECTOR_TYPE, vectors[i].tobytes(),
            )  # fmt: skip
            rows.append(pack_profile(head, portraits[i]))
        owner, at = np.nonzero(missing)
        pairs = set(zip(features.rows["item_key"][owner, at].tolist(), owner.tolist(), strict=True))
        waiting = [(key_bytes(key), users[n]) for key, n in pairs]
        return rows, waiting if encoder is self.encoder else waiting + [(FALLBACK, user) for user in users]
