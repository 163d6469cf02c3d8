"""What is installed from a wheel, without any extra, is whole."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from testkit.apache import free_port

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
CONFIG = """
[kafka]
bootstrap = "{bootstrap}"
[worker]
prefix = "wheel"
partitions = 2
data_dir = "data"
[query]
port = {port}
[[platforms]]
name = "shop"
code = 1
preset = "plain"
topic = "wheel.in"
items_topic = "wheel.items"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that has the wheel and what it depends on, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file() and name.split("/")[0] in ("schemas", "encoder", "training", "streams", "pyproject.toml", "README.md", "LICENSE"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    commands = folder / "env" / "bin"
    subprocess.run([str(commands / "pip"), "install", "-q", "--no-compile", "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    return commands


def test_wheel(installed: Path, bootstrap: str, tmp_path: Path) -> None:
    """A wheel in an empty environment has every module and data file: help, topics, check and a worker that serves a profile."""
    port = free_port()
    (tmp_path / "currents.toml").write_text(CONFIG.format(bootstrap=bootstrap, port=port))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CURRENTS_"))}

    def currents(*arguments: str, stdin: str | None = None) -> str:
        command = [str(installed / "currents"), *arguments]
        done = subprocess.run(command, input=stdin, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "worker" in currents("--help")
    assert len(json.loads(_helped(installed, environment))) > 10
    assert currents("topics", "--create")
    assert currents("check")
    worker = subprocess.Popen([str(installed / "currents"), "worker"], cwd=tmp_path, env=environment)
    try:
        currents("produce", "-", "--platform", "shop", "--items", stdin='{"id": "i1", "title": "Espresso machine"}\n')
        event = {"account": "ada", "item": "i1", "behavior": "buy", "time": time.time_ns() // 1_000_000, "id": "1"}
        currents("produce", "-", "--platform", "shop", stdin=json.dumps(event) + "\n")
        deadline = time.monotonic() + 90
        while (status := _status(port)) != 200:
            assert time.monotonic() < deadline, status
            assert worker.poll() is None
            time.sleep(0.2)
        assert json.loads(currents("query", "shop:ada", "--json"))["events"] == 1
    finally:
        worker.terminate()
        assert worker.wait(60) == 0


def _helped(installed: Path, environment: dict[str, str]) -> str:
    """Ask every command, groups of commands included, for its help, all in one process; the commands as a JSON list of words."""
    code = (
        "import json, typer; from typer.testing import CliRunner; from streams.commands.main import app\n"
        "def walk(c, words):\n"
        "    return [w for n, s in c.commands.items() for w in walk(s, [*words, n])] if hasattr(c, 'commands') else [words]\n"
        "found = walk(typer.main.get_command(app), [])\n"
        "for words in found:\n"
        "    done = CliRunner().invoke(app, [*words, '--help'])\n"
        "    assert done.exit_code == 0 and done.output, (words, done.output)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([str(installed / "python"), "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _status(port: int) -> int:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/profiles/shop:ada", timeout=5, trust_env=False).status_code
    except httpx.HTTPError:
        return 0
