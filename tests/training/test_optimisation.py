"""What is trained and how: optimizer, decay, accumulation, precision, early stopping, the best epoch."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.recipe import Recipe
from testkit.training_logs import ITEMS, QUICK, made_log
from training import finetune
from training.evaluate import Ranked, Score
from training.finetune import Trained, train
from training.log import EventLog
from training.objective import Objective
from training.optimisation import optimizer_of
from training.splits import Cases, leave_one_out

LOG = made_log()
SPLIT = leave_one_out(LOG)
STEADY = QUICK.model_copy(update={"dropout": 0.0, "residual_dropout": 0.0, "warmup": 0.0})
STANDS_STILL = 1e-12  # a learning rate


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps one state a process; every run here is a run of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(folder: Path, recipe: Recipe = STEADY, **changes: object) -> Trained:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(LOG, SPLIT, recipe.model_copy(update=changes), folder)


def one_step(optimizer: str, gradient: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name -> a parameter of a random encoder before and after one step of the recipe's optimizer, all gradients being the same number."""
    torch.manual_seed(0)
    recipe = Recipe(preset="xs", dims=16, optimizer=optimizer, lr=0.1, weight_decay=0.05, residual_decay=0.5)
    counts = np.ones(LOG.catalogue.size, np.int64)
    encoder = SequenceEncoder(preset("xs", 16, dims=16, residuals=ITEMS))
    for parameter in encoder.parameters():
        torch.nn.init.uniform_(parameter, 1, 2)
        parameter.grad = torch.full_like(parameter, gradient)
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    optimizer_of(Objective(encoder, recipe, LOG, counts, np.arange(LOG.catalogue.size)), recipe).step()
    return {name: (before[name], parameter.detach()) for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize(("optimizer", "momentum"), [("adamw", 1.0), ("sgd", 1.9)])
def test_decay(optimizer: str, momentum: float) -> None:
    """Without a gradient matrices and ID residuals shrink by decays of their own; norms, biases, scalars and embeddings stay."""
    decays = {"item.weight": 0.05, "body.blocks.0.up.weight": 0.05, "projector.direct.weight": 0.05, "residual.weight": 0.5}
    spared = ("norm.weight", "out.bias", "log_half_life", "platform.weight", "behavior.weight", "body.blocks.0.bias.time.weight", "worth")
    found = one_step(optimizer, 0.0)
    for name, decay in {**decays, **dict.fromkeys(spared, 0.0)}.items():
        before, after = found[name]
        torch.testing.assert_close(after, before * (1 - 0.1 * momentum * decay), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("optimizer", "step"), [("adamw", 0.1), ("sgd", 0.1 * 1.9 * 1e-3)])
def test_optimizer(optimizer: str, step: float) -> None:
    """AdamW's first step is the learning rate, however small the gradient; SGD's is the gradient with Nesterov momentum."""
    before, after = one_step(optimizer, 1e-3)["norm.weight"]
    torch.testing.assert_close(before - after, torch.full_like(before, step), rtol=1e-2, atol=1e-6)


def test_accumulation(tmp_path: Path) -> None:
    """The batches of one optimizer step are computed with the same weights, and an epoch has as many steps as whole groups of batches."""
    still = trained(tmp_path / "still", lr=STANDS_STILL).losses
    found = trained(tmp_path / "found", accumulate=2, lr=1e-2).losses
    each = trained(tmp_path / "each", lr=1e-2).losses
    assert found[:2] == pytest.approx(still[:2], abs=1e-5)
    assert abs(each[1] - still[1]) > 1e-2
    assert abs(found[2] - still[2]) > 1e-2
    steps = {run: torch.load(tmp_path / run / "checkpoint" / "custom_checkpoint_0.pkl")["n_averaged"].item() for run in ("found", "each")}
    assert steps == {"found": len(found) / 2, "each": len(each)}


def test_precision(tmp_path: Path) -> None:
    """With bf16 the losses differ from those in float32 by roundings, and the weights stay in float32."""
    full, half = (trained(tmp_path / precision, precision=precision) for precision in ("no", "bf16"))
    assert half.losses[0] != full.losses[0]
    assert half.losses[0] == pytest.approx(full.losses[0], rel=1e-2)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


class Validation:
    """Stands in for the ranking: the start has a bad rank, every epoch the next one of a list. Remembers the weights of the epochs."""

    def __init__(self, ranks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self._ranks = iter([100, *ranks])
        self._seen: list[dict[str, torch.Tensor]] = []
        monkeypatch.setattr(finetune, "model_scores", self._remember)
        monkeypatch.setattr(finetune, "rank", self._rank)

    def _remember(self, model: SequenceEncoder, log: EventLog, residual: np.ndarray) -> Score:
        self._seen.append(copy.deepcopy(model.state_dict()))
        return lambda log, some: np.zeros(0)

    @property
    def weights(self) -> list[dict[str, torch.Tensor]]:
        return self._seen[1:]

    def _rank(self, score: Score, log: EventLog, some: Cases) -> Ranked:
        return Ranked(np.full(len(some), next(self._ranks)), np.zeros((len(some), 1), np.int64))


def test_early_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training stops when validation has not improved for the epochs of its patience; an equal metric is no improvement."""
    Validation([9, 3, 3, 5, 1], monkeypatch)
    assert len(trained(tmp_path, epochs=5, patience=2).history) == 4


def test_goes_on_while_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An improvement within the patience starts it anew."""
    Validation([9, 9, 5, 5, 1], monkeypatch)
    assert len(trained(tmp_path, epochs=5, patience=2).history) == 5


def test_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that come back are those of the best epoch, not of the last, and they are the averaged ones."""
    validation = Validation([9, 2, 5, 4], monkeypatch)
    out = trained(tmp_path, epochs=4, lr=1e-2)
    first, best, *_, last = validation.weights
    torch.testing.assert_close(out.model.state_dict(), best, atol=0, rtol=0)
    assert all(not torch.equal(best["item.weight"], other["item.weight"]) for other in (first, last))


def test_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The averaged weights lag behind the trained ones; without a decay they are the trained ones."""
    distance = {}
    for ema in (0.0, 0.999):
        validation = Validation([1], monkeypatch)
        trained(tmp_path / str(ema), ema=ema, lr=1e-2)
        stored = load_file(tmp_path / str(ema) / "checkpoint" / "model.safetensors")
        distance[ema] = float((stored["encoder.item.weight"] - validation.weights[0]["item.weight"]).abs().max())
    assert distance[0.0] == 0 < distance[0.999]
