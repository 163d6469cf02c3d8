"""The loop: pinned, resumed, switched."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from testkit.training_logs import ITEMS, QUICK, made_log
from training.batches import Batch, batch
from training.evaluate import rank
from training.finetune import train
from training.initial import fresh
from training.scorers import model_scores, popularity
from training.splits import DataError, leave_one_out


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps one state a process; every run here is a run of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


PINNED = [10.946381568908691, 9.396519660949707, 8.394614219665527, 9.192931175231934]


def test_four_steps(tmp_path: Path) -> None:
    """Four steps of the real recipe give the losses that they always gave."""
    log = made_log()
    out = train(log, leave_one_out(log), QUICK.model_copy(update={"batch_users": 12}), tmp_path)
    assert out.losses[:4] == pytest.approx(PINNED, abs=1e-4)


@pytest.mark.parametrize("change", [{}, {"adapter": "lora"}, {"adapter": "adalora", "adapter_rank": 2, "lr": 1e-2}, {"accumulate": 3}], ids=str)
def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]) -> None:
    """A run killed between two steps goes on with the losses of the unbroken one, and ends with its weights."""
    log = made_log()
    split, recipe = leave_one_out(log), QUICK.model_copy(update={"epochs": 3, "checkpoint_steps": 2, **change})
    whole = train(log, split, recipe, tmp_path / "whole")

    class Killed(Exception):
        pass

    count, done = 0, len(whole.losses) - 4

    def killed(*arguments: object) -> Batch:
        nonlocal count
        count += 1
        if count > done:
            raise Killed
        return batch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("training.finetune.batch", killed)
    with pytest.raises(Killed):
        train(log, split, recipe, tmp_path / "broken")
    monkeypatch.setattr("training.finetune.batch", batch)
    rest = train(log, split, recipe, tmp_path / "broken")
    assert 0 < len(rest.losses) < len(whole.losses)
    assert rest.losses == pytest.approx(whole.losses[-len(rest.losses) :], abs=1e-5)
    assert [pytest.approx(row, abs=1e-5) for row in whole.history] == rest.history
    torch.testing.assert_close(rest.model.state_dict(), whole.model.state_dict(), atol=1e-5, rtol=0)
    stored = [load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in ("broken", "whole")]
    torch.testing.assert_close(*stored, atol=1e-5, rtol=0)


def test_no_better_than_the_start(tmp_path: Path) -> None:
    """The start counts when the best epoch is chosen: training that only makes it worse ends early, says so, and keeps the start."""
    log, told = made_log(), list[str]()
    split, recipe = leave_one_out(log), QUICK.model_copy(update={"lr": 100.0, "ema": 0.0, "epochs": 9, "patience": 2, "clip": 1e9})
    start = fresh(log, split, recipe, np.zeros(log.catalogue.size, np.int64))
    before = {k: v.clone() for k, v in start.state_dict().items()}
    out = train(log, split, recipe, tmp_path, start, told.append, np.zeros(log.catalogue.size, np.int64))
    assert told[0].startswith("start: valid_ndcg@10 ")
    assert told[-1] == "stopped early after epoch 2/9, the last 2 of which were no better; no epoch is better than the start, which is kept"
    torch.testing.assert_close(out.model.state_dict(), before)


def test_going_on(tmp_path: Path) -> None:
    """A run goes on for more epochs, also when it ended between two renames of a checkpoint; another recipe's or other data's is refused."""
    log, told = made_log(), list[str]()
    split = leave_one_out(log)
    train(log, split, QUICK, tmp_path)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    more = train(log, split, QUICK.model_copy(update={"epochs": 2, "patience": 3}), tmp_path, note=told.append)
    assert told[0] == "going on at epoch 1, step 0"
    assert len(more.history) == 2
    assert not (tmp_path / "checkpoint.old").exists()
    with pytest.raises(DataError, match=r"holds a run with lr = 0\.001, this one has 0\.01; go on with that, or take another folder"):
        train(log, split, QUICK.model_copy(update={"lr": 1e-2}), tmp_path)
    other = made_log(41)
    with pytest.raises(DataError, match=r"holds a run with events = \d+, this one has \d+"):
        train(other, leave_one_out(other), QUICK, tmp_path)


def test_ranks(tmp_path: Path) -> None:
    """AdaLoRA's ranks fall to the budget by the end of a run: the rank times the number of matrices, not the same for each."""
    log = made_log()
    train(log, leave_one_out(log), QUICK.model_copy(update={"adapter": "adalora", "adapter_rank": 2, "epochs": 8}), tmp_path)
    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")
    ranks = [int((values != 0).sum()) for name, values in stored.items() if "lora_E" in name]
    assert sum(ranks) == 2 * len(ranks)
    assert len(set(ranks)) > 1


@pytest.mark.slow
def test_learns(tmp_path: Path) -> None:
    """Trained on users who keep to their taste it beats popularity; on shuffled items it stays at chance."""
    more = {"epochs": 12, "max_len": 20, "lr": 3e-3, "batch_users": 32, "negatives": 0, "dropout": 0.0, "residual_dropout": 0.0, "ema": 0.9}
    recipe = QUICK.model_copy(update=more)
    log = made_log(400)
    r = np.random.default_rng(0)
    items = log.items.copy()
    for code in (1, 2):
        own = np.flatnonzero(log.catalogue.platform[log.items] == code)
        items[own] = r.permutation(items[own])
    shuffled = replace(log, items=items)
    hits = {}
    for name, data in (("true", log), ("shuffled", shuffled)):
        split = leave_one_out(data)
        out = train(data, split, recipe, tmp_path / name)
        hits[name] = float((rank(model_scores(out.model, data, out.residual), data, split.test).rank <= 10).mean())
        hits[name + " popularity"] = float((rank(popularity(data.counts(split.trained(len(data.rows)))), data, split.test).rank <= 10).mean())
    chance = 10 / (ITEMS / 2 - 5)
    assert hits["true"] > 1.5 * hits["true popularity"]
    assert abs(hits["shuffled"] - chance) < 0.12


def test_bad_pattern(tmp_path: Path) -> None:
    """A pattern that freezes nothing is an error that says what there is."""
    log = made_log()
    with pytest.raises(DataError, match=r"'bodi\.\*' names no parameter; there are .*body\.\*"):
        train(log, leave_one_out(log), QUICK.model_copy(update={"freeze": ("bodi.*",)}), tmp_path)
    with pytest.raises(DataError, match=r"'body\.\*' names the adapters too"):
        train(log, leave_one_out(log), QUICK.model_copy(update={"freeze": ("body.*",), "adapter": "lora"}), tmp_path)


def test_tracking(tmp_path: Path) -> None:
    """The course of training goes to TensorBoard's files beside the checkpoints."""
    log = made_log()
    train(log, leave_one_out(log), QUICK.model_copy(update={"log_to": "tensorboard"}), tmp_path)
    assert list(tmp_path.glob("currents/events.out.tfevents.*"))


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_no_wandb(tmp_path: Path) -> None:
    """Weights & Biases is no part of the extra: where it is asked for and missing, the error says how to get it."""
    log = made_log()
    with pytest.raises(DataError, match=r"training.log_to = 'wandb'.*pip install wandb"):
        train(log, leave_one_out(log), QUICK.model_copy(update={"log_to": "wandb"}), tmp_path)
