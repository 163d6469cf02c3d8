"""Virtual environments of other systems under `.peers`: RecTools needs an incompatible numpy, Quix Streams another Kafka client."""

import shutil
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".peers"


def python(name: str, requirements: Path) -> Path:
    """Return the interpreter of an environment. Creates the environment unless one with these requirements exists."""
    folder = FOLDER / name
    interpreter, installed = folder / "venv" / "bin" / "python", folder / "installed.txt"
    if not installed.exists() or installed.read_bytes() != requirements.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder / "venv", with_pip=True)
        subprocess.run([interpreter, "-m", "pip", "install", "-q", "-r", requirements], check=True)
        shutil.copyfile(requirements, installed)
    return interpreter
