"""An encoder that fails, hangs or is gone, in a worker that is otherwise whole."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from encoder.base import Encoder
from encoder.bundle import Bundle
from encoder.features import Features, ItemTable
from encoder.onnx_encoder import OnnxEncoder
from encoder.towers import load_tower
from streams.core.settings import Settings
from streams.processes.worker import Worker, running
from streams.releases.routing import Lineup
from testkit.live import events, items, profiles, settings_of, until, wait, windows_wrong

pytestmark = pytest.mark.broker
FIRST, SECOND = [f"u{n}" for n in range(60)], [f"v{n}" for n in range(80)]


class Flaky:
    """The encoder that a worker has, but for when it fails: `fails` is called in its place."""

    def __init__(self, encoder: Encoder) -> None:
        self.real = encoder
        self.version, self.space_id, self.dims, self.max_len = encoder.version, encoder.space_id, encoder.dims, encoder.max_len
        self.projected = encoder.projected
        self.fails: Callable[[Encoder, int], np.ndarray] | None = None

    def encode(self, features: Features, table: ItemTable) -> np.ndarray:
        return self.fails(self.real, len(features.lengths)) if self.fails else self.real.encode(features, table)

    def project(self, vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return self.real.project(vectors, keys)


def gpu_gone(encoder: Encoder, n: int) -> np.ndarray:
    raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API call")


def onnx_error(encoder: Encoder, n: int) -> np.ndarray:
    """One that ONNX Runtime itself raises."""
    assert isinstance(encoder, OnnxEncoder)
    found: np.ndarray = encoder._windows.run(["vector"], {"items": np.zeros((1, 2), np.float64)})[0]
    return found


def not_numbers(encoder: Encoder, n: int) -> np.ndarray:
    return np.full((n, encoder.dims), np.nan, np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A sequence encoder whose vectors are not the baseline's."""
    import torch

    from encoder.config import preset
    from encoder.model import SequenceEncoder
    from training.export import export

    torch.manual_seed(0)
    tower = load_tower("static")
    model = SequenceEncoder(preset("xs", tower.dims, max_len=32))
    torch.nn.init.normal_(model.out.weight, std=0.05)
    return export(model, tmp_path_factory.mktemp("bundle") / "xs", tower.space_id, "xs")


def with_bundle(bootstrap: str, folder: Path, bundle: Bundle, **encoding: Any) -> Settings:
    return settings_of(bootstrap, folder, encoding={"encoder": str(bundle.folder), **encoding})


async def begun(worker: Worker, settings: Settings) -> Flaky:
    """A worker with items and the first users' profiles, whose encoder can be made to fail."""
    flaky = Flaky(worker.encoder)
    worker.lifecycle.swapper.lineup = Lineup(flaky)
    await items(settings)
    await wait(worker, lambda: worker.store.table.size > 10)
    await events(settings, FIRST, "first")
    await wait(worker, lambda: settled(worker, len(FIRST)))
    return flaky


def settled(worker: Worker, folded: int) -> bool:
    return worker.metrics.value("currents_folded_total") >= folded and not worker.backlog.records()


async def health(worker: Worker) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=20) as client:
        response = await client.get(f"{worker.url}/healthz")
        found: dict[str, Any] = response.json()
        return found | {"code": response.status_code}


@pytest.mark.parametrize("fails", [gpu_gone, onnx_error, not_numbers], ids=lambda f: f.__name__)
def test_stalls(bootstrap: str, tmp_path: Path, bundle: Bundle, fails: Callable[..., np.ndarray], caplog: pytest.LogCaptureFixture) -> None:
    """While the encoder fails nothing is acknowledged and reads are answered; metrics, log and health say so; when it works again nothing is lost."""
    settings = with_bundle(bootstrap, tmp_path, bundle)

    async def scenario() -> None:
        async with running(settings) as worker:
            flaky = await begun(worker, settings)
            before = await profiles(settings)
            flaky.fails = fails
            await events(settings, SECOND, "second")
            await wait(worker, lambda: worker.metrics.value("currents_encoder_failures_total") >= 4)
            await wait(worker, lambda: worker.metrics.value("currents_events_total") == len(FIRST + SECOND))
            await wait(worker, lambda: worker.backlog.records() == len(SECOND))
            assert worker.metrics.value("currents_encoder_failing_seconds") > 0
            assert await profiles(settings) == before
            assert (await health(worker)).items() >= {"code": 200, "status": "encoder fails"}.items()
            async with httpx.AsyncClient(base_url=worker.url, timeout=20) as client:
                assert (await client.get("/v1/profiles/u1")).status_code == 200
                assert (await client.get("/v1/profiles/v1")).status_code == 404
                assert (await client.get("/readyz")).status_code == 200
            flaky.fails = None
            await wait(worker, lambda: settled(worker, len(FIRST + SECOND)))
            after = await profiles(settings)
            assert after.keys() == {*FIRST, *SECOND}
            assert {p.encoder_version for p in after.values()} == {bundle.manifest.version}
            assert worker.metrics.value("currents_encoder_failing_seconds") == 0
            assert (await health(worker)).items() >= {"code": 200, "status": "ok"}.items()
        assert await windows_wrong(settings) == 0

    asyncio.run(scenario())
    assert any("failed" in r.getMessage() and bundle.manifest.version in r.getMessage() for r in caplog.records)
    assert any("works again" in r.getMessage() for r in caplog.records)


def test_slow(bootstrap: str, tmp_path: Path, bundle: Bundle) -> None:
    """A call that takes longer than the session loses neither its place in the group nor an event."""
    settings = with_bundle(bootstrap, tmp_path, bundle)

    def hangs_once(encoder: Encoder, n: int) -> np.ndarray:
        time.sleep(settings.worker.session_timeout_s + 3)
        flaky[0].fails = None
        raise RuntimeError("timed out")

    flaky: list[Flaky] = []

    async def scenario() -> None:
        async with running(settings) as worker:
            flaky.append(await begun(worker, settings))
            generation = worker.tablets.generation
            flaky[0].fails = hangs_once
            await events(settings, SECOND, "second")
            await wait(worker, lambda: settled(worker, len(FIRST + SECOND)))
            assert worker.metrics.value("currents_encoder_failures_total") == 1
            assert worker.tablets.generation == generation
        assert (await profiles(settings)).keys() == {*FIRST, *SECOND}
        assert await windows_wrong(settings) == 0

    asyncio.run(scenario())


def test_stopped_while_it_fails(bootstrap: str, tmp_path: Path, bundle: Bundle) -> None:
    """A worker whose encoder fails can be stopped, and the next one takes the events that had waited."""
    settings = with_bundle(bootstrap, tmp_path, bundle)

    async def scenario() -> None:
        async with running(settings) as worker:
            (await begun(worker, settings)).fails = gpu_gone
            await events(settings, SECOND, "second")
            await wait(worker, lambda: worker.metrics.value("currents_encoder_failures_total") >= 2)
        async with running(settings) as worker:
            await wait(worker, lambda: settled(worker, len(SECOND)))
        assert (await profiles(settings)).keys() == {*FIRST, *SECOND}
        assert await windows_wrong(settings) == 0

    asyncio.run(scenario())


def test_other_worker_comes(bootstrap: str, tmp_path: Path, bundle: Bundle) -> None:
    """A worker whose encoder fails does not hold the group up: one that joins gets tablets and their waiting events, and encodes them."""
    settings = with_bundle(bootstrap, tmp_path, bundle)
    own = {
        "CURRENTS_KAFKA__BOOTSTRAP": bootstrap,
        "CURRENTS_WORKER__PREFIX": settings.worker.prefix,
        "CURRENTS_WORKER__PARTITIONS": str(settings.worker.partitions),
        "CURRENTS_WORKER__DATA_DIR": str(tmp_path / "other"),
        "CURRENTS_QUERY__PORT": "0",
        "CURRENTS_ENCODING__ENCODER": str(bundle.folder),
    }
    p, config = settings.platforms[0], tmp_path / "currents.toml"
    config.write_text(
        f'[[platforms]]\nname = "shop"\ncode = 1\npreset = "plain"\nshared_ids = true\ntopic = "{p.topic}"\nitems_topic = "{p.items_topic}"\n'
    )

    async def scenario() -> None:
        async with running(settings) as worker:
            flaky = await begun(worker, settings)
            flaky.fails = gpu_gone
            await events(settings, SECOND, "second")
            await wait(worker, lambda: worker.backlog.records() == len(SECOND))
            command = [sys.executable, "-m", "streams.commands.main", "worker", "--config", str(config)]
            with subprocess.Popen(command, env={**os.environ, **own}) as other:

                async def some() -> bool:
                    return bool((await profiles(settings)).keys() & set(SECOND))

                await until(some, 200)
                flaky.fails = None

                async def everyone() -> bool:
                    return (await profiles(settings)).keys() == {*FIRST, *SECOND}

                await until(everyone)
                other.terminate()
            assert other.returncode == 0
        assert await windows_wrong(settings) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("back", ["same-worker", "rebuilt-worker", "without-fallback"])
def test_fallback(bootstrap: str, tmp_path: Path, bundle: Bundle, back: str) -> None:
    """The fallback's profiles name it and its space; when the encoder is back, or another worker comes, fallback or not, they are made again."""
    settings = with_bundle(bootstrap, tmp_path, bundle, fallback="baseline", fallback_after_s=0.5)
    tower, manifest = load_tower("static"), bundle.manifest

    async def made(settings: Settings) -> dict[str, tuple[str, str]]:
        return {u: (p.encoder_version, p.space_id) for u, p in (await profiles(settings)).items()}

    async def scenario() -> None:
        by_encoder, by_fallback = (manifest.version, manifest.space_id), ("baseline-3", tower.space_id)
        assert manifest.space_id != tower.space_id
        async with running(settings) as worker:
            flaky = await begun(worker, settings)
            flaky.fails = gpu_gone
            await events(settings, SECOND, "second")
            await wait(worker, lambda: settled(worker, len(FIRST + SECOND)))
            assert await made(settings) == dict.fromkeys(FIRST, by_encoder) | dict.fromkeys(SECOND, by_fallback)
            assert worker.metrics.value("currents_fallback_profiles_total") == len(SECOND)
            async with httpx.AsyncClient(base_url=worker.url, timeout=20) as client:
                ranked = (await client.post("/v1/profiles/v1:rank", json={"items": ["shop:i1", "shop:i2"]})).json()
                assert (ranked["space_id"], len(ranked["ranked"])) == (tower.space_id, 2)
            if back == "same-worker":
                flaky.fails = None
                await wait(worker, lambda: worker.metrics.value("currents_reencoded_total") >= len(SECOND))
        if back != "same-worker":
            shutil.rmtree(settings.worker.data_dir)
            encoding = settings.encoding.model_copy(update={"fallback": "baseline" if back == "rebuilt-worker" else "none"})
            async with running(settings.model_copy(update={"encoding": encoding})) as worker:
                await wait(worker, lambda: worker.metrics.value("currents_released_profiles_total") >= len(SECOND))
        assert await made(settings) == dict.fromkeys(FIRST + SECOND, by_encoder)
        assert await windows_wrong(settings) == 0

    asyncio.run(scenario())
