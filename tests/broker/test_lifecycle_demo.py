"""The demo of an encoder's life, and a demo whose broker goes."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.broker
COMMAND = [sys.executable, "-m", "streams.cli", "demo"]
FIELDS = {"retrains", "promoted", "refused", "rolled_back", "windows_wrong", "mixed_space_pairs", "quality_before", "quality_after"}


@pytest.mark.timeout(1200)
def test_lifecycle() -> None:
    """After a drift a retrained encoder is promoted and is better on arriving events; a broken one is refused, one of a campaign rolled back."""
    command = [*COMMAND, "--lifecycle", "--seconds", "60", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() >= FIELDS
    assert (result["windows_wrong"], result["mixed_space_pairs"], result["vectors_wrong"]) == (0, 0, 0)
    assert result["retrains"] >= 2
    assert min(result["promoted"], result["refused"], result["rolled_back"]) >= 1, done.stderr[-3000:]
    assert result["quality_after"] > result["quality_before"] > 0


@pytest.mark.parametrize("more", [[], ["--lifecycle"]])
def test_broker_gone(more: list[str]) -> None:
    """When its broker is killed the demo ends with one line and exit status 1."""
    with subprocess.Popen([*COMMAND, "--seconds", "600", "--json", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (brokers := [c for c in psutil.Process(process.pid).children() if "broker" in c.cmdline()]):
            time.sleep(0.2)
        time.sleep(8)
        brokers[0].send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("currents: the embedded broker ended (exit status -9)")
