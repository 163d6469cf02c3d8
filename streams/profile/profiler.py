"""Makes packed profiles from a batch of windows: features, interest vectors, portraits, bytes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait

import numpy as np

from encoder.base import Encoder
from encoder.features import UNKNOWN, Features, featurize, fitted
from schemas.events import BEHAVIOR_CODE
from schemas.profiles import Columns, maker, pack_maker, pack_profiles, unknown_items
from schemas.windows import DTYPE, Policy
from streams.core.settings import Settings
from streams.profile.encoder_guard import Guard
from streams.profile.portrait import Style, interests
from streams.releases.routing import Current, Lineup
from streams.state.item_store import ItemStore
from streams.state.tablet import FALLBACK, key_bytes


def style_of(settings: Settings) -> Style:
    """Return the portrait's settings as arrays."""
    weights = np.zeros(256)
    for name, weight in settings.portrait.weights.items():
        weights[BEHAVIOR_CODE[name]] = weight
    platforms = {p.code: p.name for p in settings.platforms}
    return Style(settings.portrait.interests, settings.portrait.evidence, settings.portrait.half_life_h * 3_600_000, weights, platforms)


class Profiler:
    """Owns the making of profiles from windows, items and the lineup. Its only state is the guard's. Call it on the encoding thread.

    Calls `failed` with the error of a candidate that cannot encode; the serving encoder then encodes the candidate's users. `beside` is an executor
    that makes portraits while the encoder makes vectors: ONNX Runtime and GPU libraries release Python's GIL.
    """

    def __init__(
        self,
        lineup: Current,
        store: ItemStore,
        style: Style,
        policy: Policy,
        guard: Guard | None = None,
        failed: Callable[[Exception], None] = lambda error: None,
        beside: Executor | None = None,
    ) -> None:
        self._lineup, self._store, self._style, self._policy, self._failed = lineup, store, style, policy, failed
        self._guard, self._beside = guard or Guard(), beside

    def __call__(
        self, users: Sequence[bytes], windows: Sequence[bytes], received: Sequence[int], at_ms: int, strict: bool = False
    ) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
        """B users and their windows -> B packed profiles, and pairs (item key, user) of the item vectors that users wait for.

        A pair with the key FALLBACK marks a user whose vector the fallback encoder made. `strict`: never use the fallback encoder.
        `received`: (B,) times in ms at which the newest event of each update reached Kafka. `at_ms`: the time of the update. Raises EncoderDown.
        """
        lineup, features = self._lineup(), featurize(windows, self._store.table, self._policy.most)
        made, portraits = self._encode_and_describe(lineup, users, features, strict)
        last = features.rows["ts_ms"][np.arange(len(windows)), features.lengths - 1]
        missing = features.mask & (features.items == UNKNOWN)
        makers = {e: pack_maker(e.version, e.space_id, e.dims) for e in {e for e, _ in made}}
        made_by, vectors = [makers[e] for e, _ in made], [v for _, v in made]
        columns = Columns(users, last, np.array(received), features.lengths, missing.sum(1), made_by, vectors, portraits)
        rows = pack_profiles(columns, at_ms)
        owner, at = np.nonzero(missing)
        pairs = set(zip(features.rows["item_key"][owner, at].tolist(), owner.tolist(), strict=True))
        ours = lineup.everybody()
        waiting = [(key_bytes(key), users[n]) for key, n in pairs]
        return rows, waiting + [(FALLBACK, user) for user, (encoder, _) in zip(users, made, strict=True) if encoder not in ours]

    def outdated(self, user: bytes, window: bytes, profile: bytes | None) -> bool:
        """Whether the lineup assigns the user to another encoder than the profile's, or items that the profile counts as unknown are known by now."""
        if profile is None or not self._lineup().makes(user, maker(profile)):
            return True
        keys = np.frombuffer(window, DTYPE, offset=1)["item_key"]
        return unknown_items(profile) > int((self._store.table.index(keys) == UNKNOWN).sum())

    def _encode_and_describe(
        self, lineup: Lineup, users: Sequence[bytes], features: Features, strict: bool
    ) -> tuple[list[tuple[Encoder, bytes]], list[bytes]]:
        """Return the result of `_encode`, and the portraits. Waits for the portraits also on an error: the items may change after the call."""
        if self._beside is None:
            return self._encode(lineup, users, features, strict), interests(features, self._store, self._style)
        portraits = self._beside.submit(interests, features, self._store, self._style)
        try:
            made = self._encode(lineup, users, features, strict)
        finally:
            wait([portraits])
        return made, portraits.result()

    def _encode(self, lineup: Lineup, users: Sequence[bytes], features: Features, strict: bool) -> list[tuple[Encoder, bytes]]:
        """B users -> B pairs (encoder that made the vector, packed vector)."""
        made: dict[int, tuple[Encoder, bytes]] = {}
        for chosen, at in lineup.split(users):
            vectors, encoder = self._encode_group(lineup, chosen, features if len(at) == len(users) else features.take(at), strict)
            packed = np.ascontiguousarray(vectors, "<f2").view(f"V{2 * vectors.shape[1]}")[:, 0].tolist()
            made |= {i: (encoder, v) for i, v in zip(at.tolist(), packed, strict=True)}
        return [made[i] for i in range(len(users))]

    def _encode_group(self, lineup: Lineup, chosen: Encoder, features: Features, strict: bool) -> tuple[np.ndarray, Encoder]:
        """Return (b, dims) vectors and the encoder that made them: `chosen`, or the serving encoder or the fallback if `chosen` fails."""

        def encode(encoder: Encoder) -> np.ndarray:
            return encoder.encode(fitted(features, encoder.max_len, self._policy), self._store.table)

        if chosen is not lineup.serving:
            try:
                vectors = encode(chosen)
                if not np.isfinite(vectors).all():
                    raise ValueError("made vectors that are not finite")
                return vectors, chosen
            except Exception as error:  # a failing candidate must not stop live events
                self._failed(error)
        return self._guard(lineup.serving, encode, strict)
