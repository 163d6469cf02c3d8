"""Items in the order of a user's interest: known ones by their vector, others by their content."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from encoder.base import Encoder
from encoder.features import UNKNOWN
from encoder.towers import Tower
from schemas.items import Item, clip_categories, content
from schemas.profiles import Profile, unpack_vector
from streams.serve.models import Rank
from streams.serve.responses import Problem, not_yet
from streams.state.item_store import ItemStore

log = logging.getLogger("currents.ranking")


class Ranker:
    """Ranks on `pool`, the one thread that may use the item store. `encoder_of`: the one that makes vectors of a space, if there is one here."""

    def __init__(self, store: ItemStore, tower: Tower, encoder_of: Callable[[str], Encoder | None], pool: Executor) -> None:
        self._store, self._tower, self._encoder_of, self._pool = store, tower, encoder_of, pool

    async def rank(self, profile: Profile, body: Rank) -> dict[str, Any]:
        """The answer to a request. Raises Problem for a profile of a space that no encoder here makes."""
        encoder = self._encoder_of(profile.space_id)
        if encoder is None:
            raise Problem(409, "the profile is of another space; it is encoded again with the user's next event", space_id=profile.space_id)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._rank, encoder, profile, body)

    def _rank(self, encoder: Encoder, profile: Profile, body: Rank) -> dict[str, Any]:
        rows = self._store.index(body.items)
        known = np.flatnonzero(rows != UNKNOWN)
        items = [Item(c.id, c.title, clip_categories(c.categories), c.text) for c in body.contents]
        table = self._store.table
        vectors = np.concatenate([table.vectors[rows[known]], self._tower.encode([content(i) for i in items])])
        keys = np.concatenate([table.keys[rows[known]], np.zeros(len(items), np.uint64)])
        try:
            scores = encoder.project(vectors, keys) @ unpack_vector(profile.vector)
        except Exception as error:  # a GPU, ONNX Runtime and torch have many ways to fail
            log.error("encoder %s failed to rank: %s: %s", encoder.version, type(error).__name__, error)
            raise not_yet("the encoder fails") from None
        names = [*(body.items[i] for i in known), *(i.item for i in items)]
        order = np.argsort(-scores, kind="stable").tolist()
        return {
            "user_id": profile.user_id,
            "space_id": profile.space_id,
            "encoder_version": profile.encoder_version,
            "updated_at": profile.updated_at,
            "ranked": [{"item": names[i], "score": float(scores[i])} for i in order],
            "unknown": [body.items[i] for i in np.flatnonzero(rows == UNKNOWN)],
        }
