"""The demo of an encoder's life, and a demo whose broker goes."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaProducer

from streams.core.errors import SettingsError
from streams.core.settings import Settings
from streams.demo import live as demo
from streams.demo.embedded_broker import started
from streams.demo.lifecycle import PARTITIONS, declared, run_lifecycle
from streams.demo.live import producing
from streams.demo.operator import FLOOD, Ended, Stage, Teller
from streams.demo.world import Emitted, World
from streams.offline.retraining import RetrainError
from streams.processes.worker import running
from streams.releases.release_log import candidate
from streams.transport.reading import read_topic
from testkit.bundles import variant
from testkit.live import until, wait
from tests.streams.processes.test_worker_releases import loaded, settings_of

pytestmark = pytest.mark.broker
COMMAND = [sys.executable, "-m", "streams.commands.main", "demo"]
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


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is not installed one line says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SettingsError, match=r"currents\[demo,train\]"):
        run_lifecycle(1, True, 1)


def test_signal() -> None:
    """SIGTERM ends it cleanly, and nothing that it started is left."""
    with subprocess.Popen([*COMMAND, "--lifecycle", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not any(c.status == psutil.CONN_LISTEN for c in psutil.Process(process.pid).net_connections("inet")):
            time.sleep(0.2)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert started
    assert not any(child.is_running() for child in started)


def test_flood_on_a_slow_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood is of as many events as were asked for, however slowly they come: a slice of that many holds nothing older."""
    world = World(1, 20)
    quick, wanted = world.events, 300

    def slow(clock: Callable[[], int]) -> Iterator[Emitted]:
        for event in quick(clock):
            time.sleep(2 / FLOOD)
            yield event

    monkeypatch.setattr(world, "events", slow)

    async def scenario(settings: Settings, config: Path) -> None:
        async with producing(settings) as producer, running(settings) as worker:
            stage = Stage(settings, config, world, producer, worker, Teller(True), asyncio.Event())
            await wait(worker, worker.ready)
            await stage.flood(wanted)
            there = [await read_topic(settings.kafka, p.topic, PARTITIONS) for p in settings.platforms]
            assert stage.sent == sum(map(len, there)) == wanted

    with started() as broker:
        asyncio.run(scenario(*declared(broker.address, tmp_path)))


def test_stopped_in_a_trial(bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo goes on for as long as it is to, and is stopped also in a trial that nothing decides, or while it waits for a release to serve."""
    settings, release = settings_of(bootstrap, tmp_path), variant(tmp_path / "1", "v1", 1)

    async def scenario() -> None:
        async with loaded(settings) as (worker, _):
            stage = Stage(settings, tmp_path, World(1, 2), AIOKafkaProducer(), worker, Teller(True), asyncio.Event())
            trying = asyncio.ensure_future(stage.trial(release, 0.5))

            async def on_trial() -> bool:
                return worker.lifecycle.lineup().candidate is not None

            await until(on_trial)
            assert not trying.done()
            monkeypatch.setattr(demo, "SETTLE_S", 0.1)  # how long the end may take is another matter
            playing = asyncio.ensure_future(stage.sleep(1000))
            await asyncio.wait((playing,), timeout=1)
            assert not playing.done()
            stage.stop.set()
            async with asyncio.timeout(20):
                for waits in (trying, playing, stage.over("nobody")):
                    with pytest.raises(Ended):
                        await waits
            assert candidate(worker.lifecycle.swapper.history) is not None

    asyncio.run(scenario())


def test_failed_retraining(bootstrap: str, tmp_path: Path) -> None:
    """A retraining that fails, and that no gate refused, ends the demo with what it said."""
    settings = settings_of(bootstrap, tmp_path)

    async def scenario() -> None:
        async with loaded(settings) as (worker, _):
            stage = Stage(settings, tmp_path / "none.toml", World(1, 2), AIOKafkaProducer(), worker, Teller(True), asyncio.Event())
            with pytest.raises(RetrainError, match=r"exit status 1: .*none\.toml"):
                await stage.retrain(100)

    asyncio.run(scenario())
