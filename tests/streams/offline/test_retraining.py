"""Runs of `currents retrain`: which goes on, where bundles go, the schedule."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from encoder.bundle import DEMO, MANIFEST, open_bundle
from schemas.runs import Steps
from streams.core.errors import SettingsError
from streams.core.settings import Settings
from streams.offline.retraining import RetrainError, _open_run, publish, scheduled

SERVES = {"version": "a", "bundle": "b", "digest": "c"}


def begin(folder: Path, serving: dict[str, str] = SERVES) -> Steps:
    steps = _open_run(folder, serving, lambda at: None, "")
    steps.step("slice", lambda: {"serving": serving})
    return steps


def test_which_run(tmp_path: Path) -> None:
    """A run that is not over goes on; after one that is, or when another release serves, a new one begins, always the last by name."""
    first = begin(tmp_path)
    assert begin(tmp_path).folder == first.folder
    first.refuse("gate")
    second = begin(tmp_path)
    assert second.folder.name > first.folder.name
    other = begin(tmp_path, {**SERVES, "version": "z"})
    assert other.folder.name > second.folder.name
    assert Steps(second.folder).refused == "begun beside a (trained), z serves now"
    other.step("announce", dict)
    assert begin(tmp_path, {**SERVES, "version": "z"}).folder.name > other.folder.name
    (tmp_path / "99990101T000000Z").mkdir()  # of a clock that was ahead
    ahead = Steps(tmp_path / "99990101T000000Z")
    ahead.refuse("x")
    names = []
    for _ in range(3):
        run = begin(tmp_path)
        names.append(run.folder.name)
        run.refuse("x")
    assert names == sorted(names)
    assert names[0] > "99990101T000000Z"
    assert len(set(names)) == 3


def test_publish(tmp_path: Path) -> None:
    """A bundle is copied whole, to a folder or a URL, once; half a copy is made whole, another bundle of that version is refused."""
    demo = open_bundle(DEMO)
    version = demo.manifest.version
    (tmp_path / version).mkdir()
    (tmp_path / version / "encoder.onnx").write_bytes(b"half")
    for _ in range(2):
        where = publish(demo.folder, str(tmp_path), version)
        assert open_bundle(where).manifest == demo.manifest
    assert Path(where).is_absolute()
    assert publish(demo.folder, "memory://bundles", version) == f"memory://bundles/{version}"
    row = json.loads((tmp_path / version / MANIFEST).read_text())
    (tmp_path / version / MANIFEST).write_text(json.dumps({**row, "made_by": "another"}))
    with pytest.raises(RetrainError, match="holds another bundle of this version"):
        publish(demo.folder, str(tmp_path), version)
    with pytest.raises(RetrainError, match=r"retrain.bundles = 'nope://x': cannot be written"):
        publish(demo.folder, "nope://x", version)


def test_bad_schedule() -> None:
    """A schedule that is no cron expression is refused with the expression."""
    for expression in ("weekly", "61 * * * *", "* * *"):
        with pytest.raises(SettingsError, match=r"retrain.schedule = .*: want a cron expression"):
            scheduled(Settings(retrain={"schedule": expression}), None)


def test_scheduler_ends(tmp_path: Path) -> None:
    """The scheduler says when the next run is, and ends at SIGTERM with exit status 0."""
    (tmp_path / "c.toml").write_text('[retrain]\nschedule = "0 0 29 2 *"\n')
    command = [sys.executable, "-m", "streams.commands.main", "retrain", "--config", "c.toml"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    while line and "next run at" not in line:
        line = process.stderr.readline()
    assert "-02-29 00:00:00" in line
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
