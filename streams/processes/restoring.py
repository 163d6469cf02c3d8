"""Restores a worker's tablets from their changelogs after each rebalance, and when a changelog has rows of another worker (foreign rows)."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from encoder.features import UNKNOWN
from streams.core.settings import Settings
from streams.monitoring.metrics import Metrics
from streams.profile.late_items import LateItems
from streams.profile.recompute import Recomputer
from streams.profile.reencode import Reencoder
from streams.state.item_store import ItemStore
from streams.state.rebuild import rebuild
from streams.state.restore import restore
from streams.state.tablet import Tablet

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Restorer:
    """Owns the restores of a worker's tablets. `spawn` starts a task whose failure ends the worker.

    `fallback` returns the version of the fallback encoder whose users a restore schedules for recomputing; None if the re-encoder finds these users.
    """

    def __init__(
        self,
        settings: Settings,
        store: ItemStore,
        recomputer: Recomputer,
        reencoder: Reencoder,
        late: LateItems,
        metrics: Metrics,
        fallback: Callable[[], str | None],
        spawn: Spawn,
    ) -> None:
        self._kafka, self._policy = settings.kafka, settings.encoding.policy
        self._topics = (settings.topic("windows"), settings.topic("profiles"))
        self._events, self._names = settings.topic("events"), {p.code: p.name for p in settings.platforms}
        self._store, self._recomputer, self._reencoder, self._late, self._metrics = store, recomputer, reencoder, late, metrics
        self._fallback, self._spawn = fallback, spawn
        self.items_ready = asyncio.Event()
        """Set once the item table has read its whole topic. A restore needs the table to find the unknown items of windows."""

    def begin(self, tablet: Tablet) -> None:
        """Start a task that restores a tablet after the tablet's running restore."""
        tablet.restore_by(lambda: self._restore(tablet), self._spawn)

    async def _restore(self, tablet: Tablet) -> None:
        await self.items_ready.wait()
        await tablet.idle()  # batches in progress when the restore was requested
        while True:
            tablet.foreign_rows_seen = False
            unpublished = await restore(
                tablet,
                self._kafka,
                self._topics,
                self._store.table,
                self._policy,
                self._metrics.restored.inc,
                self._fallback(),
                self._metrics.rejected,
            )
            self._metrics.rebuilt.inc(await rebuild(tablet, self._kafka, self._events, self._names, self._policy))
            if unpublished and not await self._recomputer.republish(tablet, unpublished):
                return
            if not tablet.foreign_rows_seen:  # else another worker wrote rows during the restore
                break
        tablet.restored.set()
        self._reencoder.restored(tablet)
        self._late.restored(tablet, self._known(tablet))

    def _known(self, tablet: Tablet) -> list[int]:
        """Return the keys of items that users of the tablet wait for and that have a vector by now."""
        awaited = [int.from_bytes(key, "big") for key in tablet.awaited()]
        rows = self._store.table.index(np.array(awaited, np.uint64))
        return [key for key, row in zip(awaited, rows, strict=True) if row != UNKNOWN]
