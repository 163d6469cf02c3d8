"""RecTools in a virtual environment of its own, `.peers`: on Python 3.11 it wants numpy < 2, which ours cannot have."""

import shutil
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".peers"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
INSTALLED = FOLDER / "installed.txt"
"""The requirements that the environment was made from."""


def python() -> Path:
    """Its interpreter; the environment is made where there is none of these requirements (3 GB to load)."""
    interpreter = FOLDER / "venv" / "bin" / "python"
    if not INSTALLED.exists() or INSTALLED.read_bytes() != REQUIREMENTS.read_bytes():
        shutil.rmtree(FOLDER, ignore_errors=True)
        venv.create(FOLDER / "venv", with_pip=True)
        subprocess.run([interpreter, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
        shutil.copyfile(REQUIREMENTS, INSTALLED)
    return interpreter
