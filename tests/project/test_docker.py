"""The image and the compose file, as far as they can be tried without a container engine."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from streams.core.settings import load

ROOT = Path(__file__).parents[2]
LINES = [line for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


def test_image() -> None:
    """The image is pinned, runs without root, has a health check, copies what is there, and has no torch."""
    assert LINES[0] == "FROM python:3.11-slim"
    assert instructions("USER") == ["currents"]
    assert "/healthz" in instructions("HEALTHCHECK")[0]
    for copied in instructions("COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert not any(word in line for line in instructions("RUN") for word in ("torch", "[", "gpu"))


def test_compose() -> None:
    """Kafka and two workers, each worker with its own folder and address, after the topics are made."""
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    services = compose["services"]
    assert services["kafka"]["image"] == "apache/kafka:4.1.1"
    assert services["kafka"]["healthcheck"]["test"]
    workers = {name: s for name, s in services.items() if name.startswith("worker-")}
    assert len(workers) == 2
    for name, worker in workers.items():
        assert worker["environment"]["CURRENTS_QUERY__URL"] == f"http://{name}:8321"
        assert worker["depends_on"]["topics"]["condition"] == "service_completed_successfully"
        (data,) = (v for v in worker["volumes"] if v.endswith(":/data"))
        assert data.split(":")[0] in compose["volumes"]
    assert len({v for w in workers.values() for v in w["volumes"] if v.endswith(":/data")}) == 2


def test_settings_of_the_compose_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings beside the compose file are valid."""
    monkeypatch.delenv("CURRENTS_CONFIG", raising=False)
    assert [p.name for p in load(ROOT / "docker" / "currents.toml").platforms] == ["shop"]


@pytest.mark.broker  # fetches packages
@pytest.mark.timeout(600)
def test_install_steps(tmp_path: Path) -> None:
    """The image's own install step, in an empty environment, gives a command line that works, and no torch."""
    (step,) = (line for line in instructions("RUN") if line.startswith("pip install"))
    arguments = shlex.split(step.split("&&")[0])[1:]
    venv, copy = tmp_path / "venv", tmp_path / "app"
    copy.mkdir()
    for copied in instructions("COPY"):
        for source in copied.split()[:-1]:
            subprocess.run(["cp", "-r", str(ROOT / source), str(copy)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin" / "pip"), *arguments], check=True, cwd=copy, stdout=subprocess.DEVNULL)
    shown = subprocess.run([str(venv / "bin" / "currents"), "settings", "--json"], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "kafka.bootstrap" in shown.stdout
    code = "import streams.processes.worker, importlib.util as u; from encoder.towers import load_tower\n"
    code += "load_tower('static'); print(u.find_spec('torch'))"
    light = subprocess.run([str(venv / "bin" / "python"), "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert light.stdout.strip() == "None"
