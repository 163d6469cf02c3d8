"""A worker's profiles: those of its own tablets, and who has the others."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streams.serve.ranking import Ranker
from streams.serve.responses import not_yet
from streams.transport.sender import partition_of

if TYPE_CHECKING:
    from streams.processes.worker import Worker


class Owned:
    """`streams.serve.api.Source` of a worker."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self.settings, self.metrics = worker.settings, worker.metrics
        self._topic = worker.settings.topic("events")
        self._partitions = worker.settings.worker.partitions

    def elsewhere(self, user: bytes) -> str | None:
        """URL of the worker that has the user's tablet; None when it is this one."""
        partition = partition_of(user, self._partitions)
        if self._worker.tablets.get(partition) is not None:
            return None
        url = self._worker.app.owners(self._topic).get(partition)
        if url is None or url == self._worker.url:
            raise not_yet("no worker has the user's tablet at the moment")
        return url

    def stored(self, user: bytes) -> bytes | None:
        """A profile of a tablet that is here and restored."""
        tablet = self._worker.tablets.get(partition_of(user, self._partitions))
        if tablet is None:
            raise not_yet("this worker does not have the user's tablet")
        if not tablet.restored.is_set():
            raise not_yet("the user's tablet is being restored")
        profile = tablet.profile(user)
        if profile and self.settings.releases.reencode_on_read:
            self._worker.reencoder.read(tablet.partition, user, profile)
        return profile

    def freshness(self, users: Sequence[bytes]) -> Mapping[str, str]:
        """None: what a worker has stored is what it has published."""
        return {}

    def ranker(self) -> Ranker:
        """The worker's own."""
        return self._worker.ranker

    def health(self) -> dict[str, Any]:
        """Whether the worker goes on; whether its encoder fails: events then wait, or the fallback encodes, and reads are answered; its encoders."""
        if self._worker.failed.done():
            return {"status": "failed"}
        failing_s, about = self._worker.guard.failing_s(), self._worker.lifecycle.health()
        return {"status": "ok", **about} if not failing_s else {"status": "encoder fails", "seconds": round(failing_s, 1), **about}

    def ready(self) -> dict[str, Any]:
        """The worker's tablets, once all are restored."""
        if not self._worker.ready():
            raise not_yet("tablets are being restored")
        return {"status": "ready", "tablets": sorted(t.partition for t in self._worker.tablets)}

    def fail(self, error: Exception) -> None:
        """The worker ends."""
        self._worker.fail(error)
