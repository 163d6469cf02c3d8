"""`currents demo --lifecycle`: tastes drift, an encoder trained from the log takes over live, a broken one is refused, a worse one is rolled back.

1 old tastes        the shipped encoder, which was trained on these tastes, serves
2 drift             tastes change, and the encoder's live hit rate falls
3 retraining        `currents retrain --once` on the newest events, its gate, then a canary; arriving events lead to the promotion
4 broken bundle     a bundle with NaN residuals; the worker refuses it
5 campaign          people act differently for a while. An encoder trained on the campaign is better on the newest part of its slice, so the gate
                    passes it. It is worse on people's actions after the campaign, so the canary rolls it back.

The script has only the world's changes and the times of the commands. The results are counted from the topic of releases.
"""

import asyncio
import hashlib
import json
import shutil
import tempfile
import time
import tomllib
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import tomli_w

from encoder.base import Encoder
from encoder.bundle import MANIFEST, RESIDUALS, open_bundle, pack_residuals
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.releases import Release
from schemas.runs import REFUSED
from streams.audit import windows as verify
from streams.audit.vectors import check_vectors
from streams.core.errors import SettingsError
from streams.core.settings import Settings
from streams.core.tasks import signalled
from streams.demo.embedded_broker import started
from streams.demo.live import beside, producing, send_items, until
from streams.demo.operator import Ended, Stage, Teller
from streams.demo.world import World
from streams.processes.worker import running
from streams.releases.bundle_fetch import load_release
from streams.transport.reading import read_topic

USERS, PARTITIONS = 500, 2
LIVE = 250  # events a second, for watching
SLICE, CAMPAIGN = 24_000, 16_000  # events of the two slices that are trained on
SECONDS = 120.0
SHARE = 0.5
OVERRIDES: dict[str, dict[str, Any]] = {
    "releases": {"follow": "on", "observed_per_s": 400, "least_events": 400},
    "retrain": {"events": SLICE, "min_events": 5000, "epochs": 10, "lr": 2e-3},
    "training": {"epochs": 12, "batch_events": 1024, "patience": 3, "max_len": 32, "threads": 1},
    "gate": {"cold_loss": 0.5, "platform_loss": 0.2, "min_cases": 30},
}
"""Settings that differ from the demo's, because the world is small and fast. Tighter bounds would refuse at random, with some 70 cold cases."""


def run_lifecycle(seconds: float | None, as_json: bool, seed: int) -> int:
    """Run the lifecycle demo for at least `seconds`, and return the exit status: 1 if a window is wrong or spaces are mixed, else 0.

    The last printed line is the result, as JSON if `as_json`. Raises SettingsError if the extra `train` is not installed.
    """
    if find_spec("torch") is None or find_spec("accelerate") is None:
        raise SettingsError('demo --lifecycle trains encoders: pip install "currents[demo,train]"')
    with started() as broker, tempfile.TemporaryDirectory(prefix="currents-demo-") as folder:
        settings, config = declared(broker.address, Path(folder))
        result = asyncio.run(beside(broker, _play(settings, config, World(seed, USERS), seconds or SECONDS, as_json)))
    if result is None:
        return 0
    print(orjson.dumps(result).decode() if as_json else sentence(result), flush=True)
    return 1 if result["windows_wrong"] or result["mixed_space_pairs"] else 0


def declared(bootstrap: str, folder: Path) -> tuple[Settings, Path]:
    """Return the settings of this demo, and a file with the same settings for the commands that the demo runs."""
    values = tomllib.loads((files("streams.demo") / "demo.toml").read_text())
    own: dict[str, dict[str, Any]] = {
        **OVERRIDES,
        "kafka": {"bootstrap": bootstrap},
        "worker": {"data_dir": str(folder / "worker"), "partitions": PARTITIONS},
        "query": {"port": 0},
        "portrait": {"interests": 5},
        "retrain": {**OVERRIDES["retrain"], "folder": str(folder / "runs"), "bundles": str(folder / "bundles")},
    }
    for section, overrides in own.items():
        values[section] = {**values.get(section, {}), **overrides}
    config = folder / "currents.toml"
    config.write_text(tomli_w.dumps(values))
    return Settings(**values), config


async def _play(settings: Settings, config: Path, world: World, seconds: float, as_json: bool) -> dict[str, Any] | None:
    tell, began = Teller(as_json), time.monotonic()
    stop = signalled()
    async with producing(settings) as producer:
        items = await send_items(producer, settings, world)
        async with running(settings) as worker:
            stage = Stage(settings, config, world, producer, worker, tell, stop)
            await until(lambda: worker.ready() and worker.store.table.size > items, worker, stop)
            line = asyncio.ensure_future(tell.line(stage))
            try:
                quality = await _acts(stage, seconds)
                if (left := seconds - (time.monotonic() - began)) > 0:
                    async with stage.flowing(LIVE):
                        await stage.sleep(left)
            except Ended:
                return None
            finally:
                line.cancel()
                await asyncio.gather(line, return_exceptions=True)
            await stage.settled()
            return {**await _counted(stage), **quality}


async def _acts(stage: Stage, seconds: float) -> dict[str, float]:
    """Run the five acts. Returns the live hit rates of the serving encoder after the drift, and of its successor."""
    tell, world, watched = stage.tell, stage.world, max(8.0, seconds / 8)
    tell(f"{stage.serving} serves, trained on the tastes that people have")
    await stage.flood(USERS * 20)
    async with stage.flowing(LIVE):
        await stage.sleep(watched / 2)
    tell("tastes drift: other things are popular, other subjects come next")
    world.turn(1)
    await stage.flood(SLICE)
    async with stage.flowing(LIVE):
        old, before = stage.serving, stage.tests(stage.serving)
        tell(f"an encoder is trained on the newest {SLICE:,} events of the log")
        await stage.sleep(watched)
        candidate = await stage.retrain(SLICE)
        low = stage.tests(old).since(before)
        if candidate is not None:
            tell(f"{candidate.version} passed the gate, and is tried on {SHARE:.0%} of the users")
            await stage.trial(candidate, SHARE)
            await stage.over(candidate.version)
        new, before = stage.serving, stage.tests(stage.serving)
        tell(f"{new} serves everybody; nobody was stopped for it")
        await stage.sleep(2 * watched)
        high = stage.tests(new).since(before)
        if candidate is not None:
            tell("a candidate is announced whose numbers are none")
            await stage.trial(spoilt(candidate, Path(stage.settings.retrain.bundles)), SHARE)
            tell(f"it is refused, {stage.serving} serves on")
    tell("a campaign: for a while people do other things, and an encoder is trained on that")
    world.turn(2)
    await stage.flood(CAMPAIGN)
    async with stage.flowing(LIVE):

        def done() -> None:
            world.turn(1)
            tell("the campaign is over while it is trained")

        candidate = await stage.retrain(CAMPAIGN, done)
        if candidate is not None:
            tell(f"{candidate.version} passed the gate on the campaign's events, and is tried on {SHARE:.0%} of the users")
            await stage.trial(candidate, SHARE)
            await stage.over(stage.serving)
            tell(f"{stage.serving} serves")
    return {"quality_before": round(low, 4), "quality_after": round(high, 4)}


def spoilt(release: Release, folder: Path) -> Release:
    """Write a copy of a release's bundle with NaN residuals and a matching manifest, and return the copy's release."""
    where = folder / "spoilt"
    shutil.copytree(release.bundle, where)
    dims = open_bundle(where).manifest.dims
    (where / RESIDUALS).write_bytes(pack_residuals(np.array([1], np.uint64), np.full((1, dims), np.nan)))
    row = json.loads((where / MANIFEST).read_text())
    row["files"][RESIDUALS] = hashlib.sha256((where / RESIDUALS).read_bytes()).hexdigest()
    row["version"] = f"{row['version']}-spoilt"
    (where / MANIFEST).write_text(json.dumps(row))
    digest = hashlib.sha256((where / MANIFEST).read_bytes()).hexdigest()
    return msgspec.structs.replace(release, version=row["version"], bundle=str(where), digest=digest)


async def _counted(stage: Stage) -> dict[str, Any]:
    """Count the results in the topic of releases, the folders of the runs, and the changelogs."""
    settings, history, worker = stage.settings, await stage.history(), stage.worker
    runs = stage.runs()
    log = await read_topic(settings.kafka, settings.topic("events"), PARTITIONS)
    names = {p.code: p.name for p in settings.platforms}
    expected, _ = verify.offline_windows(log, names, settings.encoding.policy)
    stored = {user: window for tablet in worker.tablets for user, window in tablet.scan("windows")}
    profiles, items = [await read_topic(settings.kafka, settings.topic(t), PARTITIONS) for t in ("profiles", "item-vectors")]
    encoders = _encoders(settings, [a.release for a in history if a.release])
    vectors = await asyncio.to_thread(check_vectors, profiles, log, items, encoders, names, settings.encoding.policy)

    def ended(state: str) -> int:
        return sum(a.release is not None and a.release.state == state for a in history)

    return {
        "retrains": sum((run / "bundle.json").exists() for run in runs),
        "promoted": ended("promoted"),
        "refused": ended("refused") + sum((run / f"{REFUSED}.json").exists() for run in runs),
        "rolled_back": ended("rolled-back"),
        "windows_wrong": verify.wrong(expected, stored),
        "mixed_space_pairs": vectors.mixed_space_pairs,
        "vectors_wrong": vectors.wrong + vectors.unknown_releases,
        "events": stage.sent,
        "profiles_published": vectors.rows,
    }


def _encoders(settings: Settings, releases: list[Release]) -> list[Encoder]:
    """Load every encoder that may have made a profile."""
    refused = {r.version for r in releases if r.state == "refused"}
    tower, found = load_tower(settings.encoding.tower), dict[tuple[str, str], Encoder]()
    first = load_encoder(settings.encoding.encoder, tower.space_id, tower.dims)
    found[first.version, first.space_id] = first
    with tempfile.TemporaryDirectory(prefix="currents-demo-") as folder:
        for release in releases:
            if (release.version, release.space_id) not in found and release.version not in refused:
                found[release.version, release.space_id] = load_release(release, Path(folder), tower.space_id, tower.dims)
    return list(found.values())


def sentence(result: dict[str, Any]) -> str:
    """Return the result as a sentence."""
    return (
        f"{result['retrains']} retrainings, {result['promoted']} promoted, {result['refused']} refused, {result['rolled_back']} rolled back; "
        f"live hit rate {result['quality_before']:.3f} → {result['quality_after']:.3f}; {result['windows_wrong']} windows wrong, "
        f"{result['mixed_space_pairs']} pairs of vectors of mixed spaces among {result['profiles_published']:,} published profiles."
    )
