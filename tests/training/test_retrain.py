"""From a slice of the log to a judged bundle."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from accelerate.state import AcceleratorState

from encoder.bundle import BundleError, open_bundle, read_residuals
from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.recipe import Compress, GateRules, Recipe
from encoder.towers import load_tower
from schemas.items import item_key
from schemas.runs import Steps
from streams.core.settings import load
from streams.demo.world_files import write_world
from testkit.validation import EverBetter
from training.compress import pruned
from training.export import examples, export
from training.job import Job, Retraining
from training.retrain import retrain
from training.splits import DataError

pytestmark = pytest.mark.usefixtures("one_layer")
STEPS = ("examples", "train", "align", "bundle", "evaluate", "gate")
LAX = GateRules(gain=-0.9, min_cases=5, platform_loss=0.9, cold_loss=0.9, latency_ms=60_000, space_cosine=0.1, space_loss=0.99)
SMALL = Recipe(
    preset="xs", dims=32, max_len=8, epochs=4, lr=1e-3, batch_users=16, weight_value=0, negatives=0, log_to="none", precision="no", threads=1,
    ema=0.9, dropout=0.0, whiten=False, residual_min_count=3,
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    EverBetter(monkeypatch)  # in so small a world the decayed mean that training starts from may be the best


@pytest.fixture(scope="module")
def world(one_layer: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and a serving release: an untrained encoder, with the ID residual of an item that nobody acted on."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "data", 6000, 150, 1, 20, end_ms=1_750_000_000_000)
    tower = load_tower("static")
    torch.manual_seed(0)
    model = SequenceEncoder(preset("xs", tower.dims, dims=32, max_len=8, residuals=1))
    with torch.no_grad():
        model.residual.weight[1] = 0.1
    rare = orjson.loads((folder / "data" / "shop.items.jsonl").read_bytes().splitlines()[-1])["sku"]
    export(model, folder / "serving", tower.space_id, "xs", np.array([item_key(f"shop:{rare}")], np.uint64))
    return folder


def job_of(world: Path, rules: GateRules = LAX, serving: str = "", **changes: Any) -> Job:
    asked = Retraining(serving=serving or str(world / "serving"), rules=rules, epochs=4, lr=1e-3, **changes)
    platforms = load(world / "data" / "currents.toml").platforms
    return Job(data=str(world / "data"), platforms=platforms, recipe=SMALL, retrain=asked)


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """The folder of a run that nobody disturbed; readers may mix vectors of both, by its rules."""
    AcceleratorState._reset_state(reset_partial_state=True)
    (world / "whole").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        EverBetter(patch)
        assert retrain(job_of(world), world / "whole", lambda line: None)["passed"]
    return world / "whole"


def trained(whole: Path, folder: Path) -> None:
    """Begin a run where the undisturbed one had trained its encoder: what follows depends on the rules, training does not."""
    for name in ("examples.json", "train.json", "keys.npy"):
        shutil.copy(whole / name, folder / name)
    shutil.copytree(whole / "trained", folder / "trained")


class Killed(Exception):
    pass


@pytest.mark.slow
def test_killed_everywhere(world: Path, whole: Path, tmp_path: Path) -> None:
    """Killed in and after every step, the run ends as the unbroken one does; no step is done again once it has left its figures."""
    reached, due = Counter[str](), [f"{when} {name}" for name in STEPS for when in ("in", "after")]

    def point(at: str) -> None:
        reached[at] += 1
        if due and at == due[0]:
            due.pop(0)
            raise Killed

    for _ in range(2 * len(STEPS)):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(Killed):
            retrain(job_of(world), tmp_path, lambda line: None, point)
    assert retrain(job_of(world), tmp_path, lambda line: None, point)["passed"]
    assert reached == {f"in {name}": 2 for name in STEPS} | {f"after {name}": 1 for name in STEPS}
    found, want = ({name: json.loads((f / f"{name}.json").read_text()) for name in STEPS} for f in (tmp_path, whole))
    assert found["examples"] | {"seconds": 0} == want["examples"] | {"seconds": 0}
    assert found["bundle"]["version"] == want["bundle"]["version"]
    assert found["evaluate"]["slices"] == want["evaluate"]["slices"]
    assert {f.name for f in tmp_path.glob("*.json")} == {f"{name}.json" for name in STEPS}


@pytest.mark.slow
def test_figures(world: Path, whole: Path) -> None:
    """A run's folder tells what was read, what it started from, how it was aligned, how it compares, and the bundle is that of its figures."""
    steps = {name: json.loads((whole / f"{name}.json").read_text()) for name in STEPS}
    assert steps["examples"]["events"] == sum(p["events"] for p in steps["examples"]["platforms"].values()) > 5000
    serving, bundle = open_bundle(world / "serving"), open_bundle(whole / "bundle")
    assert steps["train"]["start"] == serving.manifest.version == steps["evaluate"]["serving"]
    assert steps["bundle"]["version"] == bundle.manifest.version == steps["evaluate"]["candidate"]
    align, everything = steps["align"], steps["evaluate"]["slices"]["all"]
    assert 1 > align["cosine"] > align["cosine_before"]
    assert align["scores_moved"] < 1e-4
    assert align["same_space"]
    assert bundle.manifest.space_id == serving.manifest.space_id
    assert everything["candidate"] > 0
    assert everything["serving"] == pytest.approx(align["mixing"]["serving"], abs=1e-3)
    assert len(steps["gate"]["findings"]) == 5 + 3
    assert all("seconds" in row for row in steps.values())


@pytest.mark.slow
def test_residuals_are_kept(world: Path, whole: Path) -> None:
    """An item with an ID residual in the serving release keeps it through a retraining in which too few acted on it."""
    keys, _ = read_residuals(world / "serving", 32)
    kept, residuals = read_residuals(whole / "bundle", 32)
    assert len(kept) > 100
    assert np.abs(residuals[kept == keys[0]]).max() > 0.01


@pytest.mark.slow
def test_refused(world: Path, whole: Path, tmp_path: Path) -> None:
    """What the gate refuses is told by rule and amount, the bundle is kept, in a space of its own as the bounds are not held; the run is over."""
    rules = LAX.model_copy(update={"gain": 50.0, "size_mb": 0.001, "space_cosine": 0.999})
    trained(whole, tmp_path)
    found = retrain(job_of(world, rules), tmp_path, lambda line: None)
    assert not found["passed"]
    compared = r"got [+-]\d+\.\d%, 0\.\d{4} → 0\.\d{4} \(difference [+-]0\.\d{4}, "
    assert re.match(r"ndcg@10 of all: want better by more than 5000\.0%, " + compared, found["refused"])
    assert "size, MB: want at most 0.001, got 1." in found["refused"]
    assert Steps(tmp_path).refused == f"gate: {found['refused']}"
    serving, bundle = open_bundle(world / "serving"), open_bundle(tmp_path / "bundle")
    assert bundle.manifest.space_id not in (serving.manifest.space_id, "")


@pytest.mark.slow
def test_baseline_serves(world: Path, tmp_path: Path) -> None:
    """Where the baseline serves, or a bundle of another shape, training starts anew, and the space is a new one."""
    retrain(job_of(world, serving="baseline"), tmp_path, lambda line: None)
    train, align = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "align"))
    assert train["start"] == "untrained: the baseline serves"
    assert (align["same_space"], align["space_id"], align["mixing"]) == (False, "", {})
    assert "other dims" in align["why"]


def test_nothing_comes_of_it(world: Path, tmp_path: Path) -> None:
    """Too few events, a platform that is missing, a serving bundle that was changed: one line, before any training, and the run is over."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(world / "serving", spoilt)
    (spoilt / "items.onnx").write_bytes(b"x")
    cases = {
        r"too few events: \d+ in the slice; want at least 100000 \(retrain.min_events\)": job_of(world, min_events=100_000),
        r"platform \w+: \d+ test cases in the slice's newest part; want at least 5000": job_of(world, LAX.model_copy(update={"min_cases": 5000})),
        r"spoilt/items.onnx: want sha256 .* the file was changed or cut": job_of(world, serving=str(spoilt)),
    }
    for n, (message, job) in enumerate(cases.items()):
        (tmp_path / str(n)).mkdir()
        with pytest.raises((DataError, BundleError), match=message):
            retrain(job, tmp_path / str(n), lambda line: None)
        assert {f.name for f in (tmp_path / str(n)).iterdir()} == {"refused.json"}


@pytest.mark.slow
def test_broken_encoder(world: Path, tmp_path: Path) -> None:
    """An encoder that gives no numbers is no release, whatever its ranks would be."""
    torch.manual_seed(0)
    model = SequenceEncoder(preset("xs", 16, dims=8, layers=1))
    with torch.no_grad():
        model.out.weight[0, 0] = torch.nan
    with pytest.raises(BundleError, match="ONNX differs from torch by nan"):
        export(model, tmp_path / "b", "tower", "xs")


def test_pruned(world: Path) -> None:
    """Pruning keeps the channels of largest magnitude: without the others' weights nothing changes, and the graph is smaller."""
    model = SequenceEncoder.from_pretrained(str(world / "serving")).eval()
    for block in model.body.blocks:
        gone = torch.randperm(model.config.inner, generator=torch.Generator().manual_seed(1))[: model.config.inner // 2]
        with torch.no_grad():
            block.down.weight[:, gone] = 0
    small = pruned(model, 0.5)
    assert small.config.inner == model.config.inner // 2
    for inputs in examples(model):
        tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
        with torch.inference_mode():
            assert torch.allclose(model(**tensors), small(**tensors), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_pruned_body(world: Path) -> None:
    """A Hugging Face transformer is refused."""
    model = SequenceEncoder.from_pretrained(str(world / "serving"))
    model.body = torch.nn.Identity()
    with pytest.raises(BundleError, match="only our own body can be pruned"):
        pruned(model, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "pruned"])
def test_compressed(world: Path, tmp_path: Path, kind: Compress) -> None:
    """A variant of the serving release goes through the same steps and rules; its graph is smaller, and it says what it was made of."""
    rules = LAX.model_copy(update={"compressed_loss": 0.9, "compressed_gain": 0.01})
    found = retrain(job_of(world, rules, compress=kind), tmp_path, lambda line: None)
    assert found["passed"], found
    assert [f["rule"] for f in found["findings"]][:2] == ["ndcg@10 of all", "size or latency"]
    steps = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in STEPS}
    serving, bundle = open_bundle(world / "serving"), open_bundle(tmp_path / "bundle")
    assert steps["train"]["start"].startswith(serving.manifest.version)
    assert bundle.onnx.stat().st_size < 0.9 * serving.onnx.stat().st_size
    assert bundle.manifest.version.startswith(f"xs-{kind}-")
    if kind == "int8":
        assert bundle.manifest.space_id == serving.manifest.space_id
        assert bundle.manifest.metrics["int8 cosine"] > 0.99


def test_nothing_to_compress(world: Path, tmp_path: Path) -> None:
    """Where the baseline serves, or a bundle without torch weights, there is no variant to make, and one line says so."""
    for kind, serving in (("int8", "baseline"), ("pruned", "demo"), ("int8", "demo")):
        folder = tmp_path / f"{kind}-{serving}"
        folder.mkdir()
        with pytest.raises(DataError, match="compress: "):
            retrain(job_of(world, serving=serving, compress=kind), folder, lambda line: None)
