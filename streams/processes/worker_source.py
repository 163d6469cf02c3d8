"""The query endpoint's view of a worker: profiles of the worker's own tablets, and the URLs of the workers with the other tablets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streams.core.settings import Settings
from streams.core.tasks import Tasks
from streams.monitoring.metrics import Metrics
from streams.processes.worker_releases import Lifecycle
from streams.profile.encoder_guard import Guard
from streams.profile.reencode import Reencoder
from streams.serve.ranking import Ranker
from streams.serve.responses import not_yet
from streams.state.followers import Behind, header
from streams.state.tablets import Tablets
from streams.transport.faust_batches import BatchApp
from streams.transport.sender import partition_of


@dataclass(frozen=True)
class WorkerSource:
    """Owns a worker's answers to the query endpoint (`streams.serve.api.Source`).

    `url` is the worker's own URL. `is_ready` returns whether every tablet is restored.
    """

    settings: Settings
    metrics: Metrics
    tablets: Tablets
    app: BatchApp
    url: str
    items: Ranker
    reencoder: Reencoder
    guard: Guard
    lifecycle: Lifecycle
    tasks: Tasks
    is_ready: Callable[[], bool]

    def elsewhere(self, user: bytes) -> str | None:
        """Return the URL of the worker that has the user's tablet; None if this worker has it. Raises a 503 error if no worker has it."""
        partition = self._partition(user)
        if self.tablets.get(partition) is not None:
            return None
        url = self.app.owners(self.settings.topic("events")).get(partition)
        if url is None or url == self.url:
            raise not_yet("no worker has the user's tablet at the moment")
        return url

    def stored(self, user: bytes) -> bytes | None:
        """Return a user's profile from this worker's tablet, None if there is none. Raises a 503 error unless the tablet is here and restored."""
        tablet = self.tablets.get(self._partition(user))
        if tablet is None:
            raise not_yet("this worker does not have the user's tablet")
        if not tablet.restored.is_set():
            raise not_yet("the user's tablet is being restored")
        profile = tablet.profile(user)
        if profile and self.settings.releases.reencode_on_read:
            self.reencoder.read(tablet.partition, user, profile)
        return profile

    def freshness(self, users: Sequence[bytes]) -> Mapping[str, str]:
        """Return freshness headers while the brokers are away: the seconds since, and the backlog of these users' tablets. Else return none."""
        if not self.app.brokers_away():
            return {}
        topic = self.settings.topic("events")
        lags = [self.app.lag_of(topic, p) for p in {self._partition(u) for u in users} if self.tablets.get(p) is not None]
        known = [lag for lag in lags if lag is not None]
        return header(Behind(sum(known) if len(known) == len(lags) else None, self.app.brokers_silent_s()))

    def ranker(self) -> Ranker:
        """Return the worker's ranker."""
        return self.items

    def health(self) -> dict[str, Any]:
        """Return the worker's status: `failed`, `brokers away`, `encoder fails` or `ok`, with the encoders unless the worker has failed.

        While the encoder fails, events wait or the fallback encodes them, and reads are answered.
        """
        if self.tasks.failed.done():
            return {"status": "failed"}
        failing_s, about = self.guard.failing_s(), self.lifecycle.health()
        if self.app.brokers_away():
            return {"status": "brokers away", "seconds": round(self.app.brokers_silent_s(), 1), **about}
        return {"status": "ok", **about} if not failing_s else {"status": "encoder fails", "seconds": round(failing_s, 1), **about}

    def ready(self) -> dict[str, Any]:
        """Return the worker's tablets. Raises a 503 error until all are restored, and if the brokers are away for over `worker.max_away_s`."""
        if not self.is_ready():
            raise not_yet("tablets are being restored")
        longest = self.settings.worker.max_away_s
        if longest and self.app.brokers_away() and self.app.brokers_silent_s() > longest:
            raise not_yet(f"the brokers have been away for {self.app.brokers_silent_s():.0f} s (worker.max_away_s)")
        return {"status": "ready", "tablets": sorted(t.partition for t in self.tablets)}

    def fail(self, error: Exception) -> None:
        """Fail the worker with this error."""
        self.tasks.fail(error)

    def _partition(self, user: bytes) -> int:
        return partition_of(user, self.settings.worker.partitions)
