"""SASRec, the baseline that is trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from encoder.features import UNKNOWN
from encoder.recipe import Recipe
from schemas.declaration import PlatformMapping
from testkit.training_logs import ITEMS, everything, made_log
from training.evaluate import rank
from training.job import Job
from training.log import EventLog
from training.run import evaluated
from training.sasrec import SASRec, Trained, examples, full_softmax, scores, train
from training.scorers import popularity
from training.splits import DataError, Split, cases, held_out_users, leave_one_out


def learned(log: EventLog, split: Split, epochs: int = 4, seed: int = 0, bf16: bool = False) -> Trained:
    return train(log, split, 20, epochs, dims=32, lr=3e-3, batch_users=32, seed=seed, bf16=bf16)


def hits(log: EventLog, split: Split, model: SASRec) -> float:
    return float((rank(scores(model), log, split.test).rank <= 10).mean())


def test_learns() -> None:
    """Trained on users who keep to their taste it beats popularity; on shuffled items it stays at chance."""
    log = made_log(400)
    split = leave_one_out(log)
    popular = float((rank(popularity(log.counts(split.trained(len(log.rows)))), log, split.test).rank <= 10).mean())
    trained = learned(log, split)
    assert hits(log, split, trained.model) > 1.5 * popular
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert hits(log, split, learned(log, split, 2, bf16=True).model) > 1.5 * popular
    items, r = log.items.copy(), np.random.default_rng(0)
    for code in (1, 2):
        own = np.flatnonzero(log.catalogue.platform[log.items] == code)
        items[own] = r.permutation(items[own])
    shuffled = replace(log, items=items)
    assert abs(hits(shuffled, split, learned(shuffled, split).model) - 10 / (ITEMS / 2 - 5)) < 0.12


@given(st.integers(0, 1000), st.booleans(), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_examples(seed: int, ties: bool, max_len: int) -> None:
    """An example is a user's newest training events in order; a target is the next of them, and later than all that its position has seen."""
    log = made_log(12, seed, ties)
    split = replace(everything(log), end=log.bounds[1:] - 1)
    users = np.flatnonzero(split.end - split.begin >= 2)
    items, targets = examples(log, split, users, max_len)
    for user, mine, wanted in zip(users, items, targets, strict=True):
        own = np.arange(split.begin[user], split.end[user])[-max_len - 1 :]
        steps = len(own) - 1
        assert mine[:steps].tolist() == log.items[own[:-1]].tolist()
        assert not mine[len(own) :].any()
        assert not wanted[steps:].any()
        later = log.rows["ts_ms"][own[1:]] > log.rows["ts_ms"][own[:-1]]
        assert wanted[:steps].tolist() == np.where(later, log.items[own[1:]], UNKNOWN).tolist()


def test_causal() -> None:
    """What comes later, padding too, changes nothing of what the model makes of an event."""
    torch.manual_seed(0)
    model = SASRec(50, 12).eval()
    torch.nn.init.normal_(model.item.weight)
    items = torch.randint(1, 50, (4, 12))
    other = items.clone()
    other[:, 7:] = torch.randint(1, 50, (4, 5))
    whole = model(items)
    torch.testing.assert_close(model(other)[:, :7], whole[:, :7])
    torch.testing.assert_close(model(items[:, :7]), whole[:, :7])
    assert not torch.allclose(model(other)[:, 7:], whole[:, 7:])


def test_no_leak() -> None:
    """Scores of a case stay the same whatever the target and all that comes at or after its time are, and change with the event before."""
    log = made_log(60)
    model = learned(log, leave_one_out(log), 1).model
    middle = cases(log, log.bounds[:-1] + 2)
    want = scores(model)(log, middle)
    owner, at = np.repeat(np.arange(60), np.diff(log.bounds)), log.rows["ts_ms"]
    future = at >= at[log.bounds[:-1] + 2][owner]
    r = np.random.default_rng(1)
    hidden = replace(log, items=np.where(future, r.integers(1, ITEMS + 1, len(at)), log.items).astype(np.int32))
    assert (hidden.items[middle.target] != log.items[middle.target]).any()
    np.testing.assert_allclose(scores(model)(hidden, middle), want, atol=1e-6)
    shown = log.items.copy()
    shown[middle.end - 1] = 1 + shown[middle.end - 1] % ITEMS
    assert np.abs(scores(model)(replace(log, items=shown), middle) - want).max(1).min() > 1e-3


def test_held_out_stays_out() -> None:
    """What is held out, and what comes after it, changes nothing of what is learned."""
    log = made_log(40)
    split = leave_one_out(log)
    first = learned(log, split, 2).model.state_dict()
    test = np.zeros(len(log.rows), bool)
    test[split.test.target] = True
    changed = replace(log, items=np.where(test, 1 + log.items % ITEMS, log.items).astype(np.int32))
    second = learned(changed, split, 2).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_seed() -> None:
    """One seed gives one model, another gives another, and the chance of others is left alone."""
    log = made_log(40)
    split = leave_one_out(log)
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    a, b, c = (learned(log, split, 2, seed).model.item.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), want)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("logits", [1 << 22, 400, 1])
def test_full_softmax(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few logits may be there at a time, loss and gradients are those of the cross-entropy over all items."""
    monkeypatch.setattr("training.sasrec.LOGITS", logits)
    torch.manual_seed(0)
    hidden, items = torch.randn(3, 5, 8, requires_grad=True), torch.randn(41, 8, requires_grad=True)
    targets = torch.randint(0, 41, (3, 5))
    targets[0, 0] = UNKNOWN
    want = F.cross_entropy((hidden @ items[1:].T).flatten(0, 1), targets.flatten() - 1, ignore_index=-1)
    wanted = torch.autograd.grad(want, (hidden, items))
    found = full_softmax(hidden, targets, items)
    torch.testing.assert_close(found, want)
    for a, b in zip(torch.autograd.grad(found, (hidden, items)), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_early_stop() -> None:
    """Training stops when validation has not risen for the epochs of its patience, and gives the model of the best one."""
    log = made_log(60)
    split = leave_one_out(log)
    trained = train(log, split, 20, 30, dims=8, lr=0.1, patience=2)
    seen = [row["valid_ndcg@10"] for row in trained.history]
    assert len(seen) == int(np.argmax(seen)) + 3 < 30
    found = rank(scores(trained.model), log, split.valid).rank
    assert float(((found <= 10) / np.log2(found + 1)).mean()) == pytest.approx(max(seen))


def test_nobody() -> None:
    """A log in which nobody has two training events is refused."""
    log = made_log(30)
    split = held_out_users(log, np.zeros(30, bool), np.zeros(30, bool))
    with pytest.raises(DataError, match="no user has two training events"):
        train(log, replace(split, end=split.begin + 1), 20)


def test_evaluated(tmp_path: Path) -> None:
    """Evaluation has it as one more row where it is asked for, with a note for every epoch."""
    r = np.random.default_rng(0)
    with (tmp_path / "shop.events.jsonl").open("wb") as events, (tmp_path / "shop.items.jsonl").open("wb") as items:
        items.writelines(orjson.dumps({"id": f"i{n}", "title": f"Thing number {n}"}) + b"\n" for n in range(40))
        for n in range(900):
            row = {"account": f"u{n % 30}", "item": f"i{r.integers(40)}", "behavior": "view", "time": 1_700_000_000_000 + n * 1000, "id": str(n)}
            events.write(orjson.dumps(row) + b"\n")
    shop = PlatformMapping.model_validate({"name": "shop", "code": 1, "preset": "plain", "shared_ids": True, "topic": "t", "items_topic": "i"})
    job, told = Job(data=tmp_path, platforms=(shop,), recipe=Recipe(max_len=16, threads=1)), list[str]()
    assert "SASRec, full softmax" not in evaluated(job, "baseline", False, told.append)["models"]
    found = evaluated(job, "baseline", False, told.append, sasrec_epochs=2)
    assert list(found["models"]) == ["popularity", "popularity, 7 days", "decayed mean", "SASRec, full softmax"]
    assert found["models"]["SASRec, full softmax"]["all"]["cases"] == found["cases"] == 30
    assert [line.split(":")[0] for line in told] == ["SASRec, epoch 1/2", "SASRec, epoch 2/2"]
