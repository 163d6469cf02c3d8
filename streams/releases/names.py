"""Releases by the names that a person gives them, and as a person reads them."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from schemas.releases import Release
from streams.core.settings import Settings

if TYPE_CHECKING:  # it brings the Kafka client, which a command like `settings` should not wait for
    from streams.releases.release_log import Announced


def history_of(settings: Settings) -> list["Announced"]:
    """Every record of the topic. Raises BrokerError."""
    from streams.releases.release_log import read_history

    return asyncio.run(read_history(settings.kafka, settings.topic("releases")))


def find(history: Sequence["Announced"], version: str | None) -> Release:
    """The newest release of a version on the topic; the candidate without one. Raises ReleaseError."""
    from streams.releases.release_log import ReleaseError, candidate

    found = candidate(history) if version is None else of_version(history, version)
    if found is None:
        nobody = f"{version}: no release of that version on the topic"
        raise ReleaseError("there is no candidate: name a version, or --bundle" if version is None else nobody)
    return found


def of_version(history: Sequence["Announced"], version: str) -> Release | None:
    """The newest release of a version on the topic."""
    return next((a.release for a in reversed(history) if a.release and a.release.version == version), None)


def named(settings: Settings, history: Sequence["Announced"], name: str) -> Release:
    """A version on the topic, or else the bundle of that name."""
    from encoder.baseline import Baseline
    from encoder.bundle import DEMO, BundleError
    from encoder.towers import load_tower
    from streams.releases.bundle_fetch import digest_of

    known = of_version(history, name)
    if known is not None:
        return known
    if name == "baseline":
        tower = load_tower(settings.encoding.tower)
        day_0 = Baseline(tower.dims, tower.space_id)
        return Release(day_0.version, day_0.space_id, "", "", "serving", 1.0, "", 0, "", "")
    where = name if "://" in name or name == DEMO else str(Path(name).resolve())
    digest, manifest = digest_of(where)
    try:
        return Release(manifest["version"], manifest["space_id"], where, digest, "serving", 1.0, "", 0, "", "", manifest.get("metrics") or {})
    except KeyError as error:
        raise BundleError(f"bundle {where}: the manifest has no {error}") from None


def encoder_of(settings: Settings, release: Release, cache: Path) -> Any:
    """The encoder of a release, tried out here. Raises BundleError."""
    from encoder.bundle import BundleError
    from encoder.towers import load_tower
    from streams.releases.bundle_fetch import FetchError, load_release

    tower = load_tower(settings.encoding.tower)
    try:
        return load_release(release, cache, tower.space_id, tower.dims, settings.encoding.threads, "cpu")
    except FetchError as error:
        raise BundleError(str(error)) from None


def row_of(record: "Announced") -> dict[str, Any]:
    """A record of the topic as JSON."""
    return {"offset": record.offset, "channel": record.channel, **fields(record.release), "problem": record.problem}


def said(record: "Announced") -> str:
    """A record of the topic in one line."""
    return f"{record.channel}  {line(record.release)}" if record.release else record.problem


def line(release: Release) -> str:
    """A release in one line."""
    share = f" {release.share:.1%}" if release.state == "canary" else ""
    why = f": {release.why}" if release.why else ""
    return f"{clock(release.at)}  {release.version}  {release.state}{share}  {release.space_id}  by {release.by}{why}"


def fields(release: Release | None) -> dict[str, Any]:
    """A release as JSON."""
    return msgspec.structs.asdict(release) if release is not None else {}


def clock(at_ms: int) -> str:
    """Local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))
