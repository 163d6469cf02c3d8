"""Promotions that a worker does not follow because its settings name an encoder: told in its log and in /healthz."""

import asyncio
import logging
from collections.abc import Callable

from streams.core.errors import BrokerError
from streams.core.settings import Settings
from streams.releases.release_log import read_history, serving

log = logging.getLogger("currents.releases")


class Unfollowed:
    """Looks at the topic of releases now and then, where the worker does not follow it. `version`: that of the serving encoder."""

    def __init__(self, settings: Settings, version: Callable[[], str]) -> None:
        self._settings, self._version = settings, version
        self.warning = ""
        """What is promoted and not followed; empty where there is nothing."""

    async def look(self) -> None:
        """Read the topic once; a new finding is logged."""
        try:
            wanted = serving(await read_history(self._settings.kafka, self._settings.topic("releases")))
        except BrokerError:
            return  # told by those who need the brokers
        differs = wanted is not None and wanted.version != self._version()
        said = f"{wanted.version} is promoted, this worker serves {self._version()}: {self._settings.unfollowed()}" if wanted and differs else ""
        if said and said != self.warning:
            log.warning("%s", said)
        self.warning = said

    async def forever(self) -> None:
        """Look without end, at the interval at which a bundle is tried again."""
        while True:
            await self.look()
            await asyncio.sleep(self._settings.releases.retry_s)
