"""The program `currents` from its first moment."""

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["currents", "tail"]
from streams.commands.start import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "pydantic", "streams.commands.main", "streams.core.settings", "streams.commands.tail", "kafka"])
def test_early_interrupt(module: str) -> None:
    """Ctrl-C while a command is still imported ends it without a traceback."""
    done = subprocess.run([sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (-2, 1, 130)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
