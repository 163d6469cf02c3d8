"""Every switch of the recipe: how it changes the losses and the parameters, beside a run without it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from encoder.model import SequenceEncoder
from encoder.recipe import Recipe
from testkit.training_logs import QUICK, made_log
from testkit.validation import EverBetter
from training.finetune import Trained, train
from training.initial import fresh
from training.log import EventLog
from training.splits import leave_one_out

LOG = made_log()
SPLIT = leave_one_out(LOG)
State = dict[str, torch.Tensor]


def run(folder: Path, log: EventLog = LOG, **changes: Any) -> Trained:
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        EverBetter(patch)  # else the untrained encoder may be the best, and be kept
        return train(log, SPLIT, QUICK.model_copy(update=changes), folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run that every switch is compared with."""
    return run(tmp_path_factory.mktemp("plain"))


def start(**changes: Any) -> SequenceEncoder:
    """The encoder that such a run starts from."""
    recipe: Recipe = QUICK.model_copy(update=changes)
    torch.manual_seed(recipe.seed)
    counts = LOG.counts(SPLIT.trained(len(LOG.rows)))
    return fresh(LOG, SPLIT, recipe, np.where(counts > 0, (counts > 0).cumsum(), 0) if recipe.residuals else np.zeros(len(counts), np.int64))


def moved(out: Trained, **changes: Any) -> State:
    """Name -> how far a parameter moved in training; those that did not move are left out."""
    before = dict(start(**changes).named_parameters())
    found = {name: (p - before[name]).detach() for name, p in out.model.named_parameters()}
    return {name: d for name, d in found.items() if d.any()}


def test_plain(plain: Trained) -> None:
    """Without a switch everything is trained, and every task has a loss."""
    assert moved(plain).keys() == dict(plain.model.named_parameters()).keys()
    assert plain.history[0].keys() == {"loss", "retrieval", "behavior", "value", "class", "valid_ndcg@10", "valid_hr@10"}


@pytest.mark.parametrize("change", [{"adapter": "lora", "adapter_rank": 3}, {"adapter": "adalora", "adapter_rank": 2}], ids=str)
def test_adapters(tmp_path: Path, change: dict[str, Any]) -> None:
    """Adapters move the matrices of the layers by low ranks and nothing else in the layers; what stands around them is trained whole."""
    out = run(tmp_path, lr=1e-2, epochs=2, **change)
    assert type(out.model) is SequenceEncoder
    assert not any("lora" in name for name, _ in out.model.named_parameters())
    found = moved(out)
    layers = {name: d for name, d in found.items() if name.startswith("body.")}
    assert layers
    assert all(name.endswith("weight") and 0 < torch.linalg.matrix_rank(d, atol=1e-5) <= 3 for name, d in layers.items())
    assert {"item.weight", "out.weight", "projector.direct.weight", "residual.weight"} <= found.keys()


@pytest.mark.parametrize("patterns", [("body.*", "residual*"), ("projector.direct.?eight",)], ids=str)
def test_freeze(tmp_path: Path, plain: Trained, patterns: tuple[str, ...]) -> None:
    """Exactly the parameters that a pattern names stay as they are."""
    out = run(tmp_path, freeze=patterns)
    begins = tuple(p.rstrip("*").replace("?", "w") for p in patterns)
    assert moved(plain).keys() - moved(out).keys() == {name for name in moved(plain) if name.startswith(begins)} != set()
    assert out.losses[0] == pytest.approx(plain.losses[0], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"platform": False}, ["platform.weight"]),
        ({"behavior": False}, ["behavior.weight"]),
        ({"start_at_mean": False}, ["log_half_life", "worth"]),
        ({"content": False}, ["projector.direct.weight", "projector.direct.bias", "projector.up.weight", "projector.down.weight"]),
        ({"weight_behavior": 0.0}, ["behavior_head.weight", "behavior_head.bias"]),
        ({"weight_class": 0.0}, ["class_head.weight", "class_head.bias"]),
        ({"weight_value": 0.0}, ["value_head.weight", "value_head.bias"]),
    ],
    ids=str,
)
def test_unused(tmp_path: Path, plain: Trained, change: dict[str, Any], names: list[str]) -> None:
    """The parameters that only an input or a task that is off would read are not trained, and the loss is another."""
    out = run(tmp_path, **change)
    assert set(names) <= moved(plain).keys()
    assert not moved(out, **change).keys() & names
    assert abs(out.losses[0] - plain.losses[0]) > 1e-4


@pytest.mark.parametrize("task", ["behavior", "class", "value"])
def test_task_off(tmp_path: Path, plain: Trained, task: str) -> None:
    """A task of weight 0 has no loss, and the others' are as they were in the first step."""
    change: dict[str, Any] = {f"weight_{task}": 0.0}
    out = run(tmp_path, **change)
    assert plain.history[0].keys() - out.history[0].keys() == {task}
    assert out.losses[0] < plain.losses[0]


def test_time(tmp_path: Path, plain: Trained) -> None:
    """With time and distance off neither bias is there, and when things happened changes nothing while their order stays."""
    off: dict[str, Any] = {"time": False, "distance": False}
    rows = LOG.rows.copy()
    rows["ts_ms"] = rows["ts_ms"].min() + (rows["ts_ms"] - rows["ts_ms"].min()) // 3
    later = replace(LOG, rows=rows)
    mine, other = run(tmp_path / "a", **off), run(tmp_path / "b", later, **off)
    assert other.losses == pytest.approx(mine.losses, abs=1e-5)
    assert run(tmp_path / "c", later).losses != pytest.approx(plain.losses, abs=1e-5)
    names = dict(mine.model.named_parameters()).keys()
    biases = {f"body.blocks.{n}.bias.{kind}.weight" for n in range(2) for kind in ("time", "distance")}
    assert not biases & names
    assert biases <= moved(plain).keys()
    assert "time.weight" not in moved(mine, **off)


def test_content(tmp_path: Path) -> None:
    """With content off the items' vectors change nothing; with it on they do."""
    vectors = np.roll(LOG.catalogue.table.vectors[: LOG.catalogue.size], 1, axis=1)
    other = LOG.with_vectors(vectors)
    for content, same in ((False, True), (True, False)):
        losses = [run(tmp_path / f"{content}-{n}", log, content=content).losses for n, log in enumerate((LOG, other))]
        assert (losses[0] == pytest.approx(losses[1], abs=1e-5)) == same


def test_residuals(tmp_path: Path, plain: Trained) -> None:
    """Items with enough training events have an ID residual, which is trained; without residuals there is none."""
    off, few = run(tmp_path / "off", residuals=False), run(tmp_path / "few", residual_min_count=8)
    counts = LOG.counts(SPLIT.trained(len(LOG.rows)))
    for out, wanted in ((plain, counts >= 1), (few, counts >= 8), (off, counts < 0)):
        assert ((out.residual > 0) == wanted).all()
        assert len(out.model.residual.weight) == 1 + wanted.sum()
    assert not off.model.residual.weight.any()
    assert few.model.residual.weight[1:].any(1).all()


def test_optimizer(tmp_path: Path, plain: Trained) -> None:
    """SGD begins with the loss of AdamW, and goes another way from the first step on."""
    out = run(tmp_path, optimizer="sgd")
    assert out.losses[0] == pytest.approx(plain.losses[0], abs=1e-5)
    assert abs(out.losses[1] - plain.losses[1]) > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"targets": "all-action"},
        {"negatives": 0},
        {"negatives_power": 0.0},
        {"logq": False},
        {"platform_power": 1.0},
        {"platform_weights": {"p1": 5.0}},
        {"mask": 0.9},
        {"drop_event": 0.6},
        {"drop_platform": 0.9},
        {"unknown_platform": 0.9},
        {"dropout": 0.8},
        {"seed": 1},
    ],
    ids=str,
)
def test_first_loss(tmp_path: Path, plain: Trained, change: dict[str, Any]) -> None:
    """What changes the examples, the negatives or the weights of the loss changes the first loss."""
    assert abs(run(tmp_path, **change).losses[0] - plain.losses[0]) > 1e-3


def test_all_action(tmp_path: Path) -> None:
    """With a horizon of nothing no event is a target: nothing is retrieved."""
    assert run(tmp_path, targets="all-action", horizon_days=1e-9).history[0]["retrieval"] == 0


def test_clip(tmp_path: Path) -> None:
    """Gradients are cut to a norm: under SGD a smaller norm moves the weights less, in proportion."""
    steps: dict[str, Any] = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "residual_decay": 0.0, "batch_users": 40, "ema": 0.0}
    far = [moved(run(tmp_path / str(clip), clip=clip, **steps))["item.weight"].norm() for clip in (1e-1, 1e-2)]
    assert float(far[0] / far[1]) == pytest.approx(10, rel=0.05)
