"""A worker's encoders as the topic of releases says: fetched and warmed up beside the one that works, changed between two batches.

    1 records of the topic      2 fetch, verify, load, try (a thread)      3 project all items into the new space, in parts: each copied on the
    encoding thread, where nobody writes to the table, and projected on another      4 on the encoding thread what came meanwhile, and the lineup

Whatever goes wrong in 1 to 3 is a refusal: one line, a count, and what is served stays.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from aiokafka import TopicPartition

from encoder.base import Encoder
from encoder.bundle import BundleError
from encoder.features import ItemTable
from schemas.releases import Release
from streams.core.cancel import end, stop
from streams.core.settings import Kafka
from streams.monitoring.metrics import SwapMetrics
from streams.monitoring.rejected import At
from streams.releases.bundle_fetch import FetchError, keep
from streams.releases.release_log import Announced, earlier, of_record, serving, trial
from streams.releases.routing import Lineup
from streams.transport.reading import reader

log = logging.getLogger("currents.releases")
MOST_REFUSED = 100  # refusals that are kept for /healthz, the newest
T = TypeVar("T")
Load = Callable[[Release, Encoder], Encoder]
"""A release and the encoder that serves now -> its encoder. Raises FetchError, BundleError."""


class Swapper:
    """Owns the lineup, and keeps it as the topic says. `pool`: the encoding thread. `switched` is called after every change."""

    def __init__(
        self,
        lineup: Lineup,
        history: Sequence[Announced],
        load: Load,
        table: ItemTable,
        pool: Executor,
        metrics: SwapMetrics,
        cache: Path,
        retry_s: float,
        switched: Callable[[], None] = lambda: None,
    ) -> None:
        self.lineup, self.history, self.refused = lineup, list(history), dict[str, str]()
        self._load, self._table, self._pool, self._metrics, self._cache, self._retry_s = load, table, pool, metrics, cache, retry_s
        self._switched = switched
        self._known: dict[str, Encoder] = {}  # identity -> what was loaded of it and is in the lineup
        self._again_at: dict[str, float] = {}  # identity -> monotonic seconds: never, for a bundle that is wrong
        self._loading: dict[str, asyncio.Task[tuple[Encoder, float]]] = {}  # identity -> its load and warming up
        self._noted: Release | None = None

    def began(self, release: Release) -> None:
        """The lineup's serving encoder is this release's."""
        self._known[_identity(release)] = self.lineup.serving

    async def follow(self, kafka: Kafka, topic: str) -> None:
        """Read the topic without end."""
        consumer, tp = reader(kafka), TopicPartition(topic, 0)
        fetching: asyncio.Task[Any] | None = None
        await consumer.start()
        try:
            consumer.assign([tp])
            consumer.seek(tp, self.history[-1].offset + 1) if self.history else await consumer.seek_to_beginning(tp)
            while True:
                await self._step()
                fetching = fetching or asyncio.ensure_future(consumer.getmany(tp, timeout_ms=1000))
                await asyncio.wait([fetching, *self._loading.values()], return_when=asyncio.FIRST_COMPLETED)
                if fetching.done():
                    for records in fetching.result().values():
                        self.take([of_record(r) for r in records], topic)
                    fetching = None
        finally:
            await end([*([fetching] if fetching else []), *self._loading.values()])
            await stop(consumer)

    def take(self, records: Sequence[Announced], topic: str = "releases") -> None:
        """Records came; those that are not valid are said."""
        for record in records:
            if record.problem:
                self._refuse(f"record {record.offset}", record.problem, record.channel)
                self._metrics.rejected(At(topic, 0, record.offset), ValueError(record.problem))
        self._again_at.clear()
        self.history += records

    async def settle(self) -> None:
        """Make the lineup as the topic says, and wait for what has to be loaded for that."""
        while True:
            await self._step()
            if not self._loading:
                return
            await asyncio.wait(self._loading.values(), return_when=asyncio.FIRST_COMPLETED)

    async def _step(self) -> None:
        """Make the lineup as the topic says, as far as releases are loaded, and begin to load the others: what hangs delays nothing else.

        Keeps the current encoder if a release cannot be loaded.
        """
        wanted = serving(self.history)
        if wanted is not None and (encoder := self._ready(wanted, "serving")) is not None:
            if encoder is not self.lineup.serving:
                await self._switch(self.lineup.serve(encoder))
            await self._note(wanted)
        tried = trial(self.history)
        settled = wanted is None or _identity(wanted) not in self._loading  # the encoder that a candidate is to stand beside is here
        candidate = None if tried is None else self._ready(tried, "candidate", settled)
        share = tried.share if tried is not None and tried.state == "canary" else 0.0
        if (candidate, share if candidate else 0.0) != (self.lineup.candidate, self.lineup.share):
            await self._switch(self.lineup.try_out(candidate, share))
        there = {_identity(r) for r in (wanted, tried) if r is not None}
        for name in self._loading.keys() - there:  # gone back from while it was loaded
            self._loading.pop(name).cancel()

    def refusal(self, release: Release) -> str | None:
        """Why a release will never be loaded here; None where it was, or may be."""
        for_good = self._again_at.get(_identity(release)) == float("inf")
        return self.refused.get(release.version) if for_good else None

    def _ready(self, release: Release, channel: str, begin: bool = True) -> Encoder | None:
        """The release's encoder, warm; None where it is refused, not to be tried again yet, or being loaded, which may `begin` here."""
        name = _identity(release)
        if (known := self._known.get(name)) is not None:
            return known
        if (loading := self._loading.get(name)) is None:
            if begin and time.monotonic() >= self._again_at.get(name, 0.0):
                self._loading[name] = asyncio.ensure_future(self._warm(release))
            return None
        if not loading.done():
            return None
        del self._loading[name]
        try:
            encoder, seconds = loading.result()
        except Exception as error:  # whatever a bundle leads to is a refusal
            again = isinstance(error, FetchError)
            self._again_at[name] = time.monotonic() + self._retry_s if again else float("inf")
            why = str(error) if isinstance(error, FetchError | BundleError) else f"{type(error).__name__}: {error}"
            self._refuse(release.version, f"{why}{f'; tried again in {self._retry_s:g} s' if again else ''}", channel)
            return None
        self.refused.pop(release.version, None)
        self._known[name] = encoder
        log.info("release %s (%s) loaded and warm after %.2f s", release.version, channel, seconds)
        return encoder

    async def _warm(self, release: Release) -> tuple[Encoder, float]:
        """The release's encoder, loaded on a thread of its own and warm, and the seconds that took."""
        began = time.perf_counter()
        encoder = await beside(self._load, release, self.lineup.serving)
        await warm(encoder, self._table, partial(asyncio.get_running_loop().run_in_executor, self._pool))
        return encoder, time.perf_counter() - began

    async def _switch(self, lineup: Lineup) -> None:
        """Effect 4, in one assignment."""

        def switch() -> float:
            began = time.perf_counter()
            for encoder in (lineup.serving, lineup.candidate):
                if encoder is not None and encoder.projected is not None:
                    encoder.projected.of(self._table)
            self.lineup = lineup
            return time.perf_counter() - began

        before = self.lineup
        took = await asyncio.get_running_loop().run_in_executor(self._pool, switch)
        self._metrics.swap_seconds.observe(took)
        self._known = {name: e for name, e in self._known.items() if e in lineup.everybody()}
        tried = f", candidate {lineup.candidate.version} for {lineup.share:.1%} of the users" if lineup.candidate else ""
        if lineup.serving is not before.serving:
            log.warning("%s (%s) serves in place of %s, switched in %.1f ms%s", *_names(lineup, before), took * 1000, tried)
        else:
            log.warning("%s (%s) serves on%s", *_names(lineup, before)[:2], tried or ", no candidate")
        self._switched()

    async def _note(self, release: Release) -> None:
        if release == self._noted:
            return
        self._noted = release
        try:
            also = (trial(self.history), earlier(self.history, None))
            await asyncio.to_thread(keep, self._cache, release, also)
        except OSError as error:
            log.error("%s: %s; after a restart the store is needed", self._cache, error.strerror)

    async def forget_older(self) -> None:
        """No profile here is of an earlier encoder any more: their item vectors go."""

        if not self.lineup.older:
            return

        def forget() -> None:
            self.lineup = self.lineup.settled()

        await asyncio.get_running_loop().run_in_executor(self._pool, forget)
        self._known = {name: e for name, e in self._known.items() if e in self.lineup.everybody()}

    def _refuse(self, what: str, why: str, channel: str) -> None:
        if self.refused.get(what) != why:
            log.error("%s is refused, %s serves on: %s", what, self.lineup.serving.version, why)
        self.refused.pop(what, None)
        self.refused[what] = why
        if len(self.refused) > MOST_REFUSED:
            del self.refused[next(iter(self.refused))]
        self._metrics.refused.labels(channel if channel in ("serving", "candidate") else "other").inc()


async def beside(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns or raises on a thread that the process does not wait for when it ends."""
    done: Future[T] = Future()

    def run() -> None:
        done.set_running_or_notify_cancel()
        try:
            done.set_result(work(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await asyncio.wrap_future(done)


async def warm(encoder: Encoder, table: ItemTable, on_pool: Callable[..., Awaitable[Any]]) -> None:
    """Project every item; the table is read on the encoding thread only. Raises BundleError where a vector is not finite."""
    projected = encoder.projected
    while projected is not None and (part := await on_pool(projected.next, table)) is not None:
        made = await asyncio.to_thread(projected.put, part)
        if not np.isfinite(made).all():
            raise BundleError(f"bundle {encoder.version}: {int((~np.isfinite(made)).any(1).sum())} of {len(made)} items are projected to no numbers")


def _identity(release: Release) -> str:
    return f"{release.version} {release.space_id} {release.digest}"


def _names(lineup: Lineup, before: Lineup) -> tuple[str, str, str]:
    return lineup.serving.version, lineup.serving.space_id, before.serving.version
