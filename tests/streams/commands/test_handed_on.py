"""Settings that a command hands on to another process arrive as they were."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from schemas.declaration import presets
from streams.commands import training
from streams.commands.main import app
from streams.core.settings import load
from streams.offline import retraining
from training.job import Job

FILTERS = """
filters = [
  { path = "type", equals = "track" }, { path = "a", in = ["x", 1, true] }, { path = "b", not_in = ["y"] }, { path = "c", exists = false },
]
"""
PLATFORMS = [f'preset = "{name}"\n' for name in presets()] + [f'preset = "plain"\n{FILTERS}', 'preset = "plain"\nitems_topic = "none"\n']
COMMANDS = {
    "train": ("train", "data", "--out", "bundle"),
    "evaluate": ("evaluate", "baseline", "data"),
    "encode": ("encode", "baseline", "data", "--out", "out.jsonl"),
    "export": ("export", "--out", "bundle", "--data", "data"),
    "tower": ("tower", "data", "--out", "tower"),
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A platform of every preset, one with every kind of filter, one without items."""
    monkeypatch.chdir(tmp_path)
    text = "".join(f'[[platforms]]\nname = "p{n}"\ncode = {n}\n{platform}' for n, platform in enumerate(PLATFORMS, 1))
    path = tmp_path / "currents.toml"
    path.write_text("[encoding]\nwindow_strong = 3\n[training]\nepochs = 7\n" + text)
    return path


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_training_commands(command: tuple[str, ...], config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training process reads every preset, filter, window and recipe as the command did."""
    jobs: list[Job] = []

    def start(arguments: list[str], processes: int = 1) -> None:
        jobs.append(Job.model_validate_json(Path(next(a for a in arguments if a.endswith("job.json"))).read_bytes()))

    monkeypatch.setattr(training, "start", start)
    done = CliRunner().invoke(app, [*command, "--config", str(config)])
    assert done.exit_code == 0, (done.output, done.exception)
    settings = load(config)
    assert [job.platforms for job in jobs] == [settings.platforms]
    assert (jobs[0].recipe, jobs[0].window) == (settings.training, settings.encoding.policy)


def test_retraining(config: Path, tmp_path: Path) -> None:
    """So does the process of a retraining."""
    settings = load(config)
    retraining._write_job(settings, "baseline", tmp_path, "")
    job = Job.model_validate_json((tmp_path / "job.json").read_bytes())
    row: dict[str, Any] = json.loads((tmp_path / "job.json").read_text())
    assert job.platforms == settings.platforms
    assert (job.recipe, row["window"]) == (settings.training, asdict(settings.encoding.policy))
    assert job.retrain is not None
    assert job.retrain.rules == settings.gate
