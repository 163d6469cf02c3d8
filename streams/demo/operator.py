"""The lifecycle demo's operator: actions of an operator, checks of what the worker did, and timed messages about both."""

import asyncio
import contextlib
import math
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from rich.console import Console

from schemas.releases import Release
from schemas.runs import REFUSED
from streams.core.clock import now_ms
from streams.core.settings import Settings
from streams.demo.live import Sent, send_events, settled, until
from streams.demo.world import World
from streams.offline.retraining import RetrainError
from streams.processes.worker import Worker
from streams.releases.canary_rules import decide
from streams.releases.release_log import Announced, announce, proposed, read_history

FLOOD = 2500  # events a second, for filling the log
TRIAL_S = 240.0  # timeout of a canary
BLOCKS = "▁▂▃▄▅▆▇█"


class Stage:
    """Owns the demo's event stream, its operator actions, and its view of the worker."""

    def __init__(
        self, settings: Settings, config: Path, world: World, producer: AIOKafkaProducer, worker: Worker, tell: "Teller", stop: asyncio.Event
    ) -> None:
        self.settings, self.world, self.worker, self.tell, self.stop = settings, world, worker, tell, stop
        self._config, self._producer = config, producer
        self.sent = 0

    @contextlib.asynccontextmanager
    async def flowing(self, rate: float) -> AsyncIterator[None]:
        """Send events at a rate in the background, as long as the context lasts."""
        rest = asyncio.Event()
        flow = asyncio.ensure_future(self._send(rate, rest))
        try:
            yield
        finally:
            rest.set()
            await flow

    async def flood(self, events: int) -> None:
        """Send events at up to FLOOD a second and wait until all are handled, so that a slice of as many events has no older ones."""
        await self._send(FLOOD, self.stop, events)
        self.going()
        await self.settled()

    async def _send(self, rate: float, stop: asyncio.Event, most: float = math.inf) -> None:
        sent = Sent()
        await send_events(self._producer, self.settings, self.world, sent, rate, stop, self.worker, most)
        self.sent += sent.events

    async def settled(self) -> None:
        """Wait until the profiles contain every sent event."""
        await self._producer.flush()
        await settled(self.worker)

    async def sleep(self, seconds: float) -> None:
        """Sleep. Raises Ended if the demo is stopped meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:  # `until` has a timeout of its own
            await until(lambda: time.monotonic() >= deadline, self.worker, self.stop)
            self.going()

    def going(self) -> None:
        """Raise Ended if the demo is stopped."""
        if self.stop.is_set():
            raise Ended

    # Checks of what the worker did

    def tests(self, version: str) -> "Tests":
        """Return an encoder version's tests so far, over all platforms."""
        value = self.worker.metrics.value
        return Tests(value("currents_live_tests_total", version=version), value("currents_live_hits_total", version=version))

    @property
    def serving(self) -> str:
        """The serving encoder's version."""
        return self.worker.encoder.version

    async def history(self) -> list[Announced]:
        """Return all records of the topic of releases."""
        return await read_history(self.settings.kafka, self.settings.topic("releases"))

    # Operator actions

    async def retrain(self, events: int, after_slice: Any = None) -> Release | None:
        """Run `currents retrain --once` on the newest `events`. Returns the announced candidate, None if the run was refused.

        Calls `after_slice` once the run has written its slice. Raises RetrainError if the run failed in another way.
        """
        known, runs = len(await self.history()), set(self.runs())
        environment = {**os.environ, "CURRENTS_RETRAIN__EVENTS": str(events)}
        command = [sys.executable, "-m", "streams.commands.main", "retrain", "--once", "--config", str(self._config)]
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
        try:
            saying = asyncio.ensure_future(process.communicate())
            while not saying.done():
                if after_slice is not None and any((run / "slice.json").exists() for run in set(self.runs()) - runs):
                    after_slice()
                    after_slice = None
                await self.sleep(0.3)
            _, said = saying.result()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        if process.returncode:
            why = said.decode().strip().rpartition("\n")[2]
            if not any((run / f"{REFUSED}.json").exists() for run in set(self.runs()) - runs):
                raise RetrainError(f"the retraining ended with exit status {process.returncode}: {why}")
            self.tell(f"it is refused: {why}")
            return None
        found = [a.release for a in (await self.history())[known:] if a.channel == "candidate" and a.release]
        return found[-1] if found else None

    def runs(self) -> list[Path]:
        """Return the folders of the retraining runs, oldest first."""
        folder = Path(self.settings.retrain.folder)
        return sorted(f for f in folder.iterdir() if f.is_dir()) if folder.exists() else []

    async def trial(self, release: Release, share: float) -> None:
        """Announce a candidate as canary for a share of the users, and wait for the worker's decision, at most TRIAL_S."""
        history = await self.history()
        tried = msgspec.structs.replace(release, state="canary", share=share, at=now_ms(), by="the demo", why="")
        await announce(self.settings.kafka, self.settings.topic("releases"), "candidate", proposed(history, tried))
        swapper, deadline = self.worker.lifecycle.swapper, time.monotonic() + TRIAL_S

        def over() -> bool:
            return any(a.release and a.release.version == release.version for a in swapper.history[len(history) + 1 :])

        while not over() and time.monotonic() < deadline:
            await self.sleep(0.2)
        if not over():
            seen = self.worker.lifecycle.observer.trial
            why = decide(seen, self.settings.releases.rules).why if seen is not None else "nothing was seen of it"
            self.tell(f"{release.version} is still on trial after {TRIAL_S:.0f} s: {why}")

    async def over(self, version: str) -> None:
        """Wait until the version serves and no user is left to re-encode, at most 60 s."""
        deadline = time.monotonic() + 60
        while (self.serving != version or self.worker.reencoder.pending()) and time.monotonic() < deadline:
            await self.sleep(0.2)


class Ended(Exception):
    """The demo was stopped by a signal."""


@dataclass(frozen=True)
class Tests:
    """Owns counts of live tests (an arriving event tests the profile before it) and of hits."""

    n: float
    hits: float

    def since(self, earlier: "Tests") -> float:
        """Return the hit rate of the tests after `earlier`; 0 if there are none."""
        return (self.hits - earlier.hits) / (self.n - earlier.n) if self.n > earlier.n else 0.0


class Teller:
    """Owns the demo's console output: timed messages and the quality line. Writes to stderr if stdout has the JSON."""

    def __init__(self, as_json: bool) -> None:
        self._console, self._began = Console(stderr=as_json, highlight=False), time.monotonic()

    def __call__(self, text: str) -> None:
        """Print a message with the elapsed time."""
        self._console.print(f"{time.monotonic() - self._began:5.0f} s  {text}", markup=False, soft_wrap=True)

    async def line(self, stage: Stage, every_s: float = 3.0) -> None:
        """Print the live hit rate of the serving encoder's profiles every `every_s` seconds. Never returns."""
        while True:
            version = stage.serving
            before = stage.tests(version)
            await asyncio.sleep(every_s)
            if (now := stage.tests(version)).n > before.n:
                rate = now.since(before)
                self(f"{BLOCKS[min(7, int(rate * 8))] * 24}  live hit rate {rate:.3f} of {version}, {now.n - before.n:.0f} events")
