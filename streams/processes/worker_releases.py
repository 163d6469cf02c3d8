"""The parts of a worker that handle releases: encoders, hot swap, re-encoding, online evaluation, the end of a canary."""

import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from pathlib import Path
from statistics import median
from typing import Any

from encoder.base import Encoder
from encoder.runtime import load_encoder
from encoder.towers import Tower
from schemas.releases import Release
from streams.core.settings import Settings
from streams.monitoring.drift import Drift
from streams.monitoring.metrics import Metrics
from streams.processes.unfollowed import Unfollowed
from streams.profile.recompute import Recomputer
from streams.profile.reencode import Reencoder
from streams.releases.bundle_fetch import limits_of, load_release, opening
from streams.releases.canary_controller import Decider
from streams.releases.canary_rules import Sums, interval
from streams.releases.hot_swap import Swapper
from streams.releases.online_eval import Observer
from streams.releases.release_log import Announced, serving
from streams.releases.routing import Lineup
from streams.state.item_store import ItemStore
from streams.state.tablets import Tablets
from streams.transport.sender import Sender

log = logging.getLogger("currents.releases")


class Lifecycle:
    """Owns the release parts of a worker: lineup, swapper, observer, drift alarms, canary controller.

    `releases`: all records of `currents.releases`; empty if the worker does not follow the topic. Raises BundleError if no encoder can be loaded.
    """

    def __init__(self, settings: Settings, releases: Sequence[Announced], tower: Tower, store: ItemStore, pool: Executor, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        e, r, cache = settings.encoding, settings.releases, Path(settings.worker.data_dir) / "bundles"

        limits = limits_of(settings, Path(settings.worker.data_dir))

        def load(release: Release, beside: Encoder | None = None) -> Encoder:
            return load_release(release, cache, tower.space_id, tower.dims, e.threads, e.device, beside, limits)

        wanted, release = serving(releases), None
        if wanted is None:
            encoder = load_encoder(e.encoder, tower.space_id, tower.dims, e.threads, e.device)
        else:
            encoder, release = opening(wanted, cache, load)
        self._reencoder: Reencoder | None = None
        self.swapper = Swapper(Lineup(encoder), releases, load, store.table, pool, metrics, cache, r.retry_s, self._switched)
        if release is not None:
            self.swapper.began(release)
        self.unfollowed = Unfollowed(settings, lambda: self.lineup().serving.version)
        names = {p.code: p.name for p in settings.platforms}
        d = settings.drift
        self.drift = Drift(d.window_s, d.reference_h, d.psi, d.share, d.alpha, d.least, self._drifted)
        self.observer = Observer(store, self.lineup, e.policy, names, metrics, r.observed_per_s, self.drift)

    def _drifted(self, what: str, of: str, psi: float, alarm: bool) -> None:
        self._metrics.drift.labels(what, of).set(psi)
        self._metrics.drift_alarm.labels(what, of).set(alarm)

    def lineup(self) -> Lineup:
        """Return the current encoders."""
        return self.swapper.lineup

    def candidate_failed(self, error: Exception) -> None:
        """Count and log that the candidate could not encode a batch."""
        if (candidate := self.lineup().candidate) is not None:
            self._metrics.candidate_failures.labels(candidate.version).inc()
        self.observer.failed()
        log.error("the candidate cannot encode: %s: %s", type(error).__name__, " ".join(str(error).split())[:300])

    def _switched(self) -> None:
        if self._reencoder is not None:
            self._reencoder.switched()

    def join(self, tablets: Tablets, recomputer: Recomputer, sender: Sender, overloaded: Callable[[], bool], url: str) -> Reencoder:
        """Connect the release parts to a worker's tablets, and return the re-encoder. `overloaded`: whether too many live events wait."""
        s, m = self._settings, self._metrics
        reencoder = Reencoder(tablets, recomputer, self.lineup, m, s.releases.reencode_per_s, overloaded, self.swapper.forget_older)
        self._reencoder = reencoder
        self._decider = Decider(self.swapper, self.observer, tablets, sender, s.topic("releases"), f"worker {url}", s.releases.rules)
        m.gauge("currents_profiles_to_encode_again", "Users found whose profile is an earlier encoder's", reencoder.pending)
        m.gauge("currents_trial_events", "Events on which candidate and serving encoder were compared", lambda: self._sums().events)
        m.gauge("currents_trial_low", "Hit rate of the candidate minus the serving one's: lower bound", lambda: self._bounds()[0])
        m.gauge("currents_trial_high", "The same: upper bound", lambda: self._bounds()[1])
        m.gauge("currents_trial_timed_batches", "Batches on which both were timed", lambda: len(self._delays()))
        text = "By how much older half of the batches' profiles would be with the candidate alone"
        m.gauge("currents_trial_later_seconds", text, lambda: median(self._delays() or [0.0]) / 1000)
        return reencoder

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines that run as long as the worker. Call it after `join`."""
        assert self._reencoder is not None  # `join` comes first
        s, found = self._settings, [self._reencoder.forever()]
        if s.follows():
            found.append(self.swapper.follow(s.kafka, s.topic("releases")))
            if s.releases.decide:
                found.append(self._decider.forever())
        else:
            found.append(self.unfollowed.forever())
        return found

    def health(self) -> dict[str, Any]:
        """Return the encoders, the refused releases with reasons, and the drift alarms, for the endpoint's health answer."""
        not_followed = {"not_followed": self.unfollowed.warning} if self.unfollowed.warning else {}
        return {"encoders": self.lineup().health(), "refused": self.swapper.refused, "drift": self.drift.alarms(), **not_followed}

    def _sums(self) -> Sums:
        return self.observer.trial.whole if self.observer.trial is not None else Sums()

    def _bounds(self) -> tuple[float, float]:
        rules = self._settings.releases.rules
        return interval(self._sums(), rules.alpha, rules.least)

    def _delays(self) -> list[float]:
        return self.observer.trial.delays if self.observer.trial is not None else []
