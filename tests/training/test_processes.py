"""Training in several processes, on the CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from streams.demo.world_files import write_world

pytestmark = pytest.mark.slow


def test_two_processes(tmp_path: Path) -> None:
    """Ended by SIGTERM, both training processes end; started again they go on where they were, and write one bundle."""
    write_world(tmp_path / "w", 3000, 80, 1, 20)
    small = {"dims": 32, "max_len": 16, "log_to": "none", "threads": 1, "batch_users": 8, "negatives": 32, "checkpoint_steps": 2}
    changes = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "streams.commands.main", "train", "w", "--out", "b", "--preset", "xs", "--epochs", "3", "--processes", "2"]
    command += [*changes, "--config", "w/currents.toml"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "b.run" / "checkpoint" / "loop.json").exists():
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.terminate()
    assert process.wait(60) == 128 + 15
    assert not psutil.wait_procs(children, 10)[1]
    assert not (tmp_path / "b").exists()

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("going on at epoch") == 1
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["bundle"] for row in told] == ["b"]
    assert [path.parent.name for path in tmp_path.glob("*/manifest.json")] == ["b"]
    history = json.loads((tmp_path / "b.run" / "checkpoint" / "loop.json").read_text())["loop"]["history"]
    assert len(history) == 3
    assert np.isfinite([[*row.values()] for row in history]).all()


def test_one_line(tmp_path: Path) -> None:
    """A mistake is told once, not by every process."""
    write_world(tmp_path / "w", 30, 5, 1, 20)
    command = [sys.executable, "-m", "streams.commands.main", "train", "w", "--out", "b", "--processes", "2", "--config", "w/currents.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("too few events") == len(done.stderr.splitlines()) == 1


def test_one_dies() -> None:
    """When one process fails, those that would wait for it for ever are ended, and the exit status is that of the failure."""
    code = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(600)"
    start = f"import streams.commands.training as l; l.GRACE_S = 0.5; l.start(['-c', {code!r}], 2)"
    runner = f"import typer\ntry:\n    {start}\nexcept typer.Exit as e:\n    print(e.exit_code)"
    done = subprocess.run([sys.executable, "-c", runner], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "7"
