"""`currents check`: broker, topics, tower and encoder, data folder, port; each with what to do."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from encoder.bundle import BundleError
from encoder.runtime import load_encoder
from encoder.towers import TowerError, load_tower
from streams.core.errors import BrokerError, SettingsError, StorageError
from streams.core.process import claim
from streams.core.settings import Settings
from streams.transport.topics import asking, differences

FREE_BYTES = 1 << 30
PROBLEMS = (BrokerError, StorageError, SettingsError, TowerError, BundleError, OSError)


class Check(NamedTuple):
    """One line of the report."""

    what: str
    ok: bool
    says: str


def checks(settings: Settings, attempts: int = 1) -> Iterator[Check]:
    """Every check in turn."""
    parts: tuple[tuple[str, Callable[[], str]], ...] = (
        ("broker and topics", lambda: _topics(settings, attempts)),
        ("platforms", lambda: _platforms(settings)),
        ("tower and encoder", lambda: _encoder(settings)),
        ("data folder", lambda: _folder(Path(settings.worker.data_dir))),
        ("query port", lambda: _port(settings)),
    )
    for what, check in parts:
        try:
            yield Check(what, True, check())
        except PROBLEMS as error:
            yield Check(what, False, str(error))


def _topics(settings: Settings, attempts: int) -> str:
    with asking(settings.kafka, attempts) as client:
        found = [f"{topic.name} {what}" for topic, what, _ in differences(client, settings)]
    if found:
        raise BrokerError("; ".join(found) + ". Run `currents topics --create` for what is missing")
    return f"{settings.kafka.bootstrap} answers, topics are as they should be"


def _platforms(settings: Settings) -> str:
    if not settings.platforms:
        raise SettingsError("none: add a [[platforms]] table to the settings file (docs/mappings.md)")
    return ", ".join(p.name for p in settings.platforms)


def _encoder(settings: Settings) -> str:
    tower = load_tower(settings.encoding.tower)
    encoder = load_encoder(settings.encoding.encoder, tower.space_id, tower.dims, settings.encoding.threads, settings.encoding.device)
    return f"{tower.space_id}; {encoder.version}, {encoder.dims} dims"


def _folder(folder: Path) -> str:
    claim(folder).close()
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise StorageError(f"{folder}: {free >> 20} MiB free, want at least {FREE_BYTES >> 20}: make room or move worker.data_dir")
    return f"{folder}, {free >> 30} GiB free"


def _port(settings: Settings) -> str:
    host, port = settings.query.host, settings.query.port
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise SettingsError(f"query.port = {port} on {host}: {error.strerror}; a worker may be running, or choose another port") from None
    return f"{host}:{port} is free"
