"""`currents retrain`: one run from the live log to an announced candidate, and runs on a schedule.

1 slice              stores the offsets and copies the records between them; the run reads no other records
2 examples … gate    `training/retrain.py`, in a separate process
3 announce           copies the bundle to a place that workers can read, then writes one record to `<prefix>.releases`

<retrain.folder>/<time>/      a run: one JSON per step (schemas/runs.py), log/, bundle/; the newest unfinished run continues
<retrain.folder>/.lock        held by the active run
"""

import asyncio
import hashlib
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import typer

from encoder.bundle import MANIFEST, open_bundle
from encoder.recipe import Compress
from schemas.releases import Release
from schemas.runs import Steps
from streams.core.clock import now_ms
from streams.core.errors import SettingsError
from streams.core.process import claim
from streams.core.settings import Settings
from streams.offline.log_slices import newest_slice, write_slice
from streams.offline.training_process import start
from streams.releases.bundle_fetch import FetchError, fetch
from streams.releases.release_log import announce, candidate, proposed, read_history, serving, trial

log = logging.getLogger("currents.retrain")
Point = Callable[[str], None]


class RetrainError(RuntimeError):
    """A run ended without a candidate. The message says why."""


def once(
    settings: Settings, train: Callable[[Path, Path], None] | None = None, point: Point = lambda at: None, compress: Compress = ""
) -> dict[str, Any]:
    """Start a run, or continue the interrupted one, and return the announced release. Raises RetrainError if no release is announced.

    `train`: called with (job file, folder of the run), runs the steps `examples` to `gate`; a separate process by default. `compress`: make a
    compressed variant of the serving encoder instead of training.
    """
    with claim(settings.retrain.folder, "retrain.folder", "run"):
        history = asyncio.run(read_history(settings.kafka, settings.topic("releases")))
        other, served = trial(history), _serving_bundle(serving(history), settings)
        if other is not None:
            raise RetrainError(f"candidate {other.version} is on trial ({other.state}): promote it or roll it back first")
        steps = _open_run(settings.retrain.folder, served, point, compress)
        folder = steps.folder
        log.info("%s: run beside %s", folder, served["version"])
        steps.step("slice", lambda: _write_slice(settings, served, folder) | {"compress": compress})
        if steps.done("gate") is None:
            _write_job(settings, _local_bundle(served, folder), folder, compress)
            try:
                (train or _train_in_process)(folder / "job.json", folder)
            except typer.Exit as ended:
                raise RetrainError(_refusal(steps) or f"{folder}: training ended with exit status {ended.exit_code}; run it again") from None
        if (why := _refusal(steps)) is not None:
            raise RetrainError(why)
        return steps.step("announce", lambda: _announce(settings, steps, served))


def _refusal(steps: Steps) -> str | None:
    return None if steps.refused is None else f"{steps.refused}; kept in {steps.folder}"


def _serving_bundle(release: Release | None, settings: Settings) -> dict[str, Any]:
    """Return version, bundle and digest of the serving encoder."""
    if release is None:
        name = settings.encoding.encoder
        version = "baseline" if name == "baseline" else open_bundle(name).manifest.version
        return {"version": version, "bundle": "" if name == "baseline" else name, "digest": ""}
    return {"version": release.version, "bundle": release.bundle, "digest": release.digest}


def _open_run(folder: Path, served: dict[str, Any], point: Point, compress: Compress) -> Steps:
    """Return the newest run if it is unfinished and started from the encoder that serves now; else a new run."""
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    if runs:
        last = Steps(runs[-1], point)
        begun = last.done("slice")
        if last.refused is None and last.done("announce") is None:
            if begun is None or (begun["serving"], begun.get("compress", "")) == (served, compress):
                return last
            last.refuse(f"begun beside {begun['serving']['version']} ({begun.get('compress') or 'trained'}), {served['version']} serves now")
    at = datetime.now(UTC)
    name, n = f"{at:%Y%m%dT%H%M%SZ}", 0
    newest = runs[-1].name if runs else ""
    while (path := folder / (name if not n else f"{max(name, newest.split('.')[0])}.{n:03d}")).exists() or path.name <= newest:
        n += 1  # the clock jumped back, or two runs within a second: names stay in order
    path.mkdir()
    return Steps(path, point)


def _write_slice(settings: Settings, served: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = newest_slice(settings, settings.retrain.source, settings.retrain.events)
    (folder / "log").mkdir(exist_ok=True)
    write_slice(settings, found, folder / "log")
    return {"serving": served, **found.as_json(), "offsets": found.count}


def _local_bundle(served: dict[str, Any], folder: Path) -> str:
    """Return the serving bundle's local folder, after fetching a remote bundle; or the name `baseline` or `demo`."""
    if not served["digest"]:
        return served["bundle"] or "baseline"
    release = Release(served["version"], "-", served["bundle"], served["digest"], "serving", 1.0, "", 0, "", "")
    try:
        return str(fetch(release, folder / "serving"))
    except FetchError as error:
        raise RetrainError(f"release {served['version']}: {error}") from None


def _write_job(settings: Settings, serving: str, folder: Path, compress: Compress) -> None:
    s = settings.retrain
    retraining = {"serving": serving, "rules": settings.gate.model_dump(), "min_events": s.min_events, "epochs": s.epochs, "lr": s.lr}
    row = {
        "data": str(folder / "log"),
        "platforms": settings.declared(),
        "tower": settings.encoding.tower,
        "earliest_ms": settings.ingest.earliest_ms(),
        "recipe": settings.training.model_dump(mode="json"),
        "window": asdict(settings.encoding.policy),
        "retrain": {**retraining, "compress": compress, "prune": s.prune},
    }
    (folder / "job.json").write_text(json.dumps(row, indent=1))


def _train_in_process(job: Path, folder: Path) -> None:
    start(["-m", "training", "retrain", str(job), "--run", str(folder)])


def _announce(settings: Settings, steps: Steps, served: dict[str, Any]) -> dict[str, Any]:
    """Copy the bundle (1), then announce the record (2). Both effects are idempotent."""
    made, measured, align = (steps.done(name) or {} for name in ("bundle", "evaluate", "align"))
    url = publish(steps.folder / "bundle", settings.retrain.bundles, made["version"])
    history = asyncio.run(read_history(settings.kafka, settings.topic("releases")))
    now, waiting = _serving_bundle(serving(history), settings), candidate(history)
    if now != served:
        steps.refuse(f"begun beside {served['version']}, {now['version']} serves now")
        raise RetrainError(_refusal(steps) or "")
    every, metric = measured["slices"]["all"], measured["metric"]
    metrics = {metric: every["candidate"], f"{metric} of {served['version']}": every["serving"], f"{metric} gained": every["difference"]["mean"]}
    metrics |= {k: float(align[k]) for k in ("cosine",) if k in align} | {k: float(measured[k]) for k in ("latency_ms", "size_mb", "parity")}
    why = f"gate passed; {align['why']}"
    release = Release(
        made["version"], made["space_id"], url, made["digest"], "candidate", 0.0, served["version"], now_ms(), "currents retrain", why, metrics
    )
    if waiting is None or (waiting.version, waiting.digest) != (release.version, release.digest):  # else an interrupted run has written the record
        asyncio.run(announce(settings.kafka, settings.topic("releases"), "candidate", proposed(history, release)))
    return {"version": release.version, "space_id": release.space_id, "bundle": url, "digest": release.digest, "metrics": metrics}


def publish(folder: Path, where: str, version: str) -> str:
    """Copy a bundle to the folder or URL `where`, its manifest last, and return the bundle's folder or URL. Raises RetrainError."""
    base = where if "://" in where else str(Path(where).resolve())
    url = f"{base.rstrip('/')}/{version}"
    try:
        fs, path = fsspec.core.url_to_fs(url)
        manifest = (folder / MANIFEST).read_bytes()
        if fs.exists(f"{path}/{MANIFEST}"):
            if hashlib.sha256(fs.cat_file(f"{path}/{MANIFEST}")).digest() != hashlib.sha256(manifest).digest():
                raise RetrainError(f"{url}: holds another bundle of this version")
            return url
        fs.makedirs(path, exist_ok=True)
        for name in open_bundle(folder).manifest.files:
            fs.put_file(str(folder / name), f"{path}/{name}")
        fs.pipe_file(f"{path}/.{MANIFEST}", manifest)
        fs.mv(f"{path}/.{MANIFEST}", f"{path}/{MANIFEST}")
    except (OSError, ImportError, ValueError) as error:
        raise RetrainError(f"retrain.bundles = {where!r}: cannot be written: {error}") from None
    return url


def scheduled(settings: Settings, config: Path | None) -> None:
    """Start a run in a separate process at each scheduled time, until SIGTERM. A failed run is logged. Raises SettingsError."""
    from apscheduler.schedulers.background import BackgroundScheduler
    from apscheduler.triggers.cron import CronTrigger

    expression = settings.retrain.schedule
    try:
        trigger = CronTrigger.from_crontab(expression, UTC)
    except ValueError as error:
        raise SettingsError(f"retrain.schedule = {expression!r}: want a cron expression: {error}") from None
    stop, running = threading.Event(), list[subprocess.Popen[bytes]]()

    def run() -> None:
        command = [sys.executable, "-m", "streams.commands.main", "retrain", "--once", *(["--config", str(config)] if config else [])]
        running[:] = [subprocess.Popen(command)]
        log.info("run ended with exit status %d", running[0].wait())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    scheduler = BackgroundScheduler(timezone=UTC)
    # One run at a time. If several start times passed during a run, or while the machine slept, one run makes up for all of them.
    job = scheduler.add_job(run, trigger, max_instances=1, coalesce=True, misfire_grace_time=None)
    scheduler.start()
    log.info("next run at %s", job.next_run_time)
    try:
        stop.wait()
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        scheduler.shutdown(wait=True)
