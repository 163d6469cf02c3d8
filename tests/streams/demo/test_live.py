"""The demo, as a newcomer runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from encoder.bundle import open_bundle

pytestmark = pytest.mark.broker
FIELDS = {"events", "normalised", "duplicates", "dead_letters", "injected_bad", "users", "profiles", "windows_wrong"}
FIELDS |= {"age_p50_ms", "age_p99_ms", "events_per_s", "encoder", "ranked_users", "hr10", "hr10_decayed_mean"}
COMMAND = [sys.executable, "-m", "streams.commands.main", "demo"]


def test_json() -> None:
    """The demo ends by itself with one JSON object: every event is in or a dead letter, no window is wrong, the trained encoder is the better one."""
    done = subprocess.run([*COMMAND, "--seconds", "6", "--json", "--rate", "500"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() == FIELDS
    assert result["windows_wrong"] == 0
    assert result["dead_letters"] == result["injected_bad"] > 0
    assert result["events"] == result["normalised"] + result["dead_letters"]
    assert result["profiles"] == result["users"] > 0
    assert result["duplicates"] > 0
    assert 0 < result["age_p50_ms"] <= result["age_p99_ms"]
    assert result["encoder"] == open_bundle("demo").manifest.version
    assert result["ranked_users"] > 300
    assert result["hr10"] > result["hr10_decayed_mean"] > 0


def test_screen_and_signal() -> None:
    """On the terminal it shows one user's interests, figures and a curl line, and ends cleanly on SIGTERM."""
    with subprocess.Popen([*COMMAND, "--rate", "800"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not any(c.status == psutil.CONN_LISTEN for c in psutil.Process(process.pid).net_connections("inet")):
            time.sleep(0.2)
        time.sleep(10)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=180)
    assert process.returncode == 0, text
    for shown in ("event → profile", "dead letters:", "curl http://127.0.0.1:", "/docs", "0 of ", "by the encoder xs-"):
        assert shown in text


def test_interrupted() -> None:
    """Ctrl-C, which a terminal sends to every process of the demo's group, ends it as a signal to it alone does: with its result."""
    command = [*COMMAND, "--rate", "300", "--users", "200", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not any(c.status == psutil.CONN_LISTEN for c in psutil.Process(process.pid).net_connections("inet")):
            time.sleep(0.2)
        time.sleep(10)
        os.killpg(process.pid, signal.SIGINT)
        text, said = process.communicate(timeout=180)
    assert process.returncode == 0, said[-3000:]
    assert json.loads(text.splitlines()[-1])["windows_wrong"] == 0
