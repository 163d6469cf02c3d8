"""Reports promotions that a worker ignores because its settings name an encoder, in the log and in /healthz."""

import asyncio
import logging
from collections.abc import Callable

from streams.core.errors import BrokerError
from streams.core.settings import Settings
from streams.releases.release_log import read_history, serving

log = logging.getLogger("currents.releases")


class Unfollowed:
    """Owns the periodic check of the topic of releases in a worker that does not follow it. `version`: the serving encoder's version."""

    def __init__(self, settings: Settings, version: Callable[[], str]) -> None:
        self._settings, self._version = settings, version
        self.warning = ""
        """Return the message about an ignored promotion; empty if there is none."""

    async def look(self) -> None:
        """Read the topic once and log a new finding."""
        try:
            wanted = serving(await read_history(self._settings.kafka, self._settings.topic("releases")))
        except BrokerError:
            return  # the parts that need the brokers report this
        differs = wanted is not None and wanted.version != self._version()
        said = f"{wanted.version} is promoted, this worker serves {self._version()}: {self._settings.unfollowed()}" if wanted and differs else ""
        if said and said != self.warning:
            log.warning("%s", said)
        self.warning = said

    async def forever(self) -> None:
        """Check at the retry interval of bundles. Never returns."""
        while True:
            await self.look()
            await asyncio.sleep(self._settings.releases.retry_s)
