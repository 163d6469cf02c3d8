"""Examples, losses, metrics, the loop."""

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from encoder.config import MASK, preset
from encoder.features import UNKNOWN
from encoder.layers import LENGTH
from encoder.model import SequenceEncoder
from encoder.recipe import Recipe
from schemas.windows import DTYPE, NO_DWELL, ROW_BYTES, Policy, fold, rows_of
from training import losses
from training.batches import Batch, batch, epoch
from training.evaluate import rank, report
from training.finetune import train
from training.log import EventLog, catalogue, event_log, windows
from training.metrics import METRICS, concentration, coverage, difference, ranked
from training.scorers import aged, decayed_mean, model_scores, popularity, recent_popularity
from training.splits import Cases, DataError, Split, by_time, cases, elsewhere, held_out_users, leave_one_out

ITEMS, DIMS = 60, 16


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps one state a process; every run here is a run of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


QUICK = Recipe(preset="xs", dims=16, max_len=8, epochs=1, batch_users=8, negatives=16, log_to="none", precision="no", threads=1, residual_min_count=1)


def made_log(users: int = 40, seed: int = 0, ties: bool = False, dims: int = DIMS) -> EventLog:
    """Users of two tastes on two platforms; each taste has its own items."""
    r = np.random.default_rng(seed)
    vectors = r.standard_normal((ITEMS, dims)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = [1 + n % 2 for n in range(ITEMS)]
    items = catalogue([f"p{c}:{n}" for n, c in enumerate(codes)], vectors, codes, {1: "p1", 2: "p2"})
    lengths = r.integers(3, 20, users)
    rows = np.zeros(int(lengths.sum()), DTYPE)
    owner = np.repeat(np.arange(users), lengths)
    chosen = 1 + (r.integers(0, ITEMS // 4, len(rows)) * 4 + (owner % 2) * 2 + r.integers(0, 2, len(rows)))
    rows["item_key"], rows["platform"] = items.table.keys[chosen], items.platform[chosen]
    rows["ts_ms"] = 1_700_000_000_000 + r.integers(0, 50 if ties else 30 * 86_400_000, len(rows))
    rows["event_id"], rows["dwell_ds"] = np.arange(len(rows)), NO_DWELL
    rows["behavior"], rows["value"] = r.integers(1, 6, len(rows)), np.where(r.random(len(rows)) < 0.5, r.normal(3, 1, len(rows)), np.nan)
    return event_log([f"u{n}" for n in owner], rows, items)


def everything(log: EventLog) -> Split:
    some = cases(log, np.zeros(0, np.int64))
    return Split(log.bounds[:-1], log.bounds[1:], some, some)


@given(st.integers(0, 1000), st.sampled_from(["next", "all-action"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_leak(seed: int, targets: str, ties: bool) -> None:
    """No input of an example holds anything at or after its target's time, and a target is something that the user did within the horizon."""
    log = made_log(12, seed, ties)
    recipe = QUICK.model_copy(update={"targets": targets, "drop_event": 0.3})
    split = everything(log)
    for n, users in enumerate(epoch(log, split, recipe, seed)):
        made = batch(log, split, recipe, users, (seed, n))
        for b, user in enumerate(users.tolist()):
            own = log.rows[log.bounds[user] : log.bounds[user + 1]]
            rows = log.items[log.bounds[user] : log.bounds[user + 1]]
            length = int(made.inputs["lengths"][b])

            def fair(ts: list[int], b: int = b, own: np.ndarray = own, rows: np.ndarray = rows, made: Batch = made) -> bool:
                longest = 14 * 86_400_000 if targets == "all-action" else 10**13
                later = [own["ts_ms"][rows == t] - at for t, at in zip(made.target[b], ts, strict=False) if t != UNKNOWN]
                return all(((ahead > 0) & (ahead <= longest + 300)).any() for ahead in later)

            found = absolute(made, b, own, rows)
            assert found
            assert any(fair(ts) for ts in found)
            assert (made.target[b, length:] == UNKNOWN).all() or targets == "all-action"


def absolute(made: Batch, b: int, own: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    """Times that the inputs of one example can have: seconds are relative to its first event, which is known by its item."""
    seconds, items, out = made.inputs["seconds"][b], made.inputs["items"][b], []
    for first in own["ts_ms"][rows == items[0]].tolist():
        times = [first + round(1000 * float(s)) for s in seconds[: made.inputs["lengths"][b]]]
        if all(np.abs(own["ts_ms"][rows == i] - t).min(initial=10**12) < 300 for i, t in zip(items.tolist(), times, strict=False)):
            out.append(times)
    return out


def test_hidden() -> None:
    """Where behavior and value are to be predicted, the model sees neither."""
    log = made_log()
    split = everything(log)
    made = batch(log, split, QUICK, np.arange(20), (1,))
    assert made.hidden.any()
    assert (made.inputs["behavior"][made.hidden] == MASK).all()
    assert not made.inputs["numeric"][made.hidden][:, [0, 2]].any()
    assert (made.behavior[made.hidden] > 0).all()
    nameless = (made.inputs["platform"] == 0) & (made.platform > 0)
    assert nameless.any()
    assert (made.inputs["behavior"][~made.hidden] != MASK).all()


def test_chance_is_seeded() -> None:
    """The same seed, epoch and batch give the same example; another epoch gives another."""
    log = made_log()
    split = everything(log)
    a, b, c = (batch(log, split, QUICK, np.arange(10), s) for s in ((1, 2), (1, 2), (1, 3)))
    assert a.inputs["items"].tobytes() == b.inputs["items"].tobytes()
    assert a.inputs["items"].tobytes() != c.inputs["items"].tobytes()
    first, again, second = (epoch(log, split, QUICK, n) for n in (0, 0, 1))
    assert [x.tolist() for x in first] == [x.tolist() for x in again] != [x.tolist() for x in second]
    assert sorted(np.concatenate(first).tolist()) == list(range(40))


def test_time_split() -> None:
    """Training events are before every validation target, those before every test target; inputs are strictly before their target."""
    log = made_log()
    split = by_time(log, 0.2, 0.2)
    ts = log.rows["ts_ms"]
    newest = ts[split.trained(len(ts))].max()
    assert newest < ts[split.valid.target].min() <= ts[split.valid.target].max() < ts[split.test.target].min()
    for some in (split.valid, split.test, by_time(log, 0.2, 0.2, successive=True).test):
        assert (ts[some.end - 1] < ts[some.target]).all()
        assert (log.starts[some.target] == some.begin).all()


@pytest.mark.parametrize("ties", [False, True])
def test_elsewhere(ties: bool) -> None:
    """With a platform held out a case keeps its target and exactly what its user did before it on other platforms."""
    log = made_log(ties=ties)
    some = leave_one_out(log).test
    other, hidden = elsewhere(log, some)
    want = {}
    for begin, end, target in zip(some.begin, some.end, some.target, strict=True):
        before = [r.tobytes() for r in log.rows[begin:end] if r["platform"] != log.rows["platform"][target]]
        if before:
            want[log.rows[target].tobytes()] = before
    assert 0 < len(want) < len(some) or not ties
    got = {other.rows[t].tobytes(): [r.tobytes() for r in other.rows[a:b]] for a, b, t in zip(hidden.begin, hidden.end, hidden.target, strict=True)}
    assert got == want


def test_leave_one_out() -> None:
    """Each user's last two events are held out, and trained on by nobody."""
    log = made_log()
    split = leave_one_out(log)
    held = np.concatenate([split.valid.target, split.test.target])
    assert not split.trained(len(log.rows))[held].any()
    assert (split.test.target == log.bounds[1:] - 1).sum() == len(split.test)
    with pytest.raises(DataError, match=r"too few events: \d+ (validation|training)"):
        leave_one_out(made_log(5))


def test_losses_by_hand() -> None:
    """Full softmax, and sampled softmax with logQ when every item is drawn as often as expected, are the same cross-entropy."""
    r = torch.manual_seed(0)
    users, items = F.normalize(torch.randn(5, 8, generator=r), dim=1), F.normalize(torch.randn(9, 8, generator=r), dim=1)
    target, tau, weight = torch.tensor([0, 3, 8, 3, 1]), torch.tensor(0.1), torch.full((5,), 0.2)
    want = F.cross_entropy(users @ items.T / 0.1, target)
    torch.testing.assert_close(losses.retrieval(users, target, items, tau, weight), want)
    hits = losses.pairs(target, torch.arange(9))
    torch.testing.assert_close(losses.sampled_retrieval(users, items[target], items, torch.zeros(9), hits, tau, weight), want)
    twice = torch.arange(9).repeat(2)
    hits, expected = losses.pairs(target, twice), torch.full((18,), math.log(2))
    doubled = losses.sampled_retrieval(users, items[target], items[twice], expected, hits, tau, weight)
    torch.testing.assert_close(doubled, want)
    torch.testing.assert_close(losses.value(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]), torch.tensor([1.0, 0.5])), torch.tensor(3.0))
    torch.testing.assert_close(losses.classes(torch.zeros(2), torch.tensor([0, 1]), torch.ones(2)), torch.tensor(2 * math.log(2)))


def test_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces it is what torch makes of the whole, and so are its gradients; pairs that are left out count for nothing."""
    monkeypatch.setattr(losses, "ROWS", 3)
    r = torch.manual_seed(0)
    users, items, bias = (torch.randn(*s, generator=r, dtype=torch.float64) for s in ((8, 4), (5, 4), (5,)))
    users.requires_grad_()
    items.requires_grad_()
    target = torch.tensor([0, 3, 3, 9, 1, 0, 4, 4])
    out = losses.log_sum_exp(users, items, bias, losses.pairs(target, torch.tensor([4, 0, 3, 3, 2])))
    mask = target[:, None] == torch.tensor([4, 0, 3, 3, 2])[None]
    want = (users @ items.T + bias).masked_fill(mask, -torch.inf).logsumexp(1)
    torch.testing.assert_close(out, want)
    weight = torch.randn(8, generator=r)
    got = torch.autograd.grad((out * weight).sum(), (users, items))
    for a, b in zip(got, torch.autograd.grad((want * weight).sum(), (users, items)), strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=1e-5, rtol=1e-4)


def test_metrics_by_hand() -> None:
    """Ranks with ties, exclusions and few items; coverage and concentration."""
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [1, 1, 1, 1], [0.9, 0.5, 0.4, 0.1]], np.float32)
    allowed = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
    found, top = ranked(scores, np.array([2, 3, 1]), allowed)
    assert found.tolist() == [3, 4, 1]
    assert top.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, -1]]
    assert METRICS["ndcg@10"](np.array([1, 3, 11])).tolist() == [1.0, 0.5, 0.0]
    none, _ = ranked(np.full((1, 30), np.nan, np.float32), np.array([29]), np.ones((1, 30), bool))
    assert none.tolist() == [30]
    assert coverage(np.array([[0, 1], [1, -1]]), 4) == 0.5
    assert concentration(np.array([[0, 1], [0, 2]]), 10) == 0.5
    assert difference(np.array([1, 20]), np.array([20, 20]), "hr@10")["mean"] == 0.5


@pytest.mark.parametrize("k", [10, 50])
def test_metrics_beside_torchmetrics(k: int) -> None:
    """Hit rate, NDCG and MRR agree with torchmetrics."""
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg, retrieval_reciprocal_rank

    r = np.random.default_rng(k)
    scores, target = r.random((30, 200)).astype(np.float32), r.integers(0, 200, 30)
    found, _ = ranked(scores, target, np.ones_like(scores, bool))
    for row, t, place in zip(torch.from_numpy(scores), target, found, strict=True):
        relevant = torch.arange(200) == t
        assert float(place <= k) == float(retrieval_hit_rate(row, relevant, top_k=k))
        if k == 10:
            assert METRICS["ndcg@10"](np.array([place]))[0] == pytest.approx(float(retrieval_normalized_dcg(row, relevant, top_k=10)), abs=1e-6)
        assert 1 / place == pytest.approx(float(retrieval_reciprocal_rank(row, relevant)), abs=1e-6)


def test_popularity_in_time() -> None:
    """Recent popularity counts what happened in the span before a target, and nothing at or after it."""
    log = made_log()
    some = leave_one_out(log).test
    scores = recent_popularity(log, 3_600_000_000)(log, some)
    for row, target in zip(scores, some.target, strict=True):
        assert row.sum() == (log.rows["ts_ms"] < log.rows["ts_ms"][target]).sum()


def test_whitened_start() -> None:
    """An untrained encoder projects a catalogue's vectors to unit covariance, up to one scale; too small a catalogue is left as it is."""
    r = torch.manual_seed(0)
    vectors = torch.randn(500, 16, generator=r) @ torch.randn(16, 16, generator=r) + 3
    projector = SequenceEncoder(preset("xs", 16, dims=16)).projector
    projector.whiten(vectors)
    covariance = torch.cov(projector.direct(vectors).T)
    torch.testing.assert_close(covariance / covariance[0, 0], torch.eye(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(projector.direct(vectors).norm(dim=1).mean(), torch.tensor(LENGTH), atol=1e-3, rtol=0)


def test_aged() -> None:
    """An aged model sees neither the newest events that it is denied, nor any at or after the time that it is given; one event it always sees."""
    log = made_log()
    some = leave_one_out(log).test
    seen: list[np.ndarray] = []

    def model(log: EventLog, some: Cases) -> np.ndarray:
        seen.append(some.end)
        return np.zeros((len(some), log.catalogue.size))

    aged(model, events=2)(log, some)
    assert (seen[-1] == np.maximum(some.end - 2, some.begin + 1)).all()
    day = 86_400_000
    aged(model, until=lambda at: at - 5 * day)(log, some)
    ts, target = log.rows["ts_ms"], log.rows["ts_ms"][some.target]
    older = seen[-1] > some.begin + 1
    assert older.any()
    assert (ts[seen[-1] - 1] < target - 5 * day)[older].all()
    assert (ts[np.minimum(seen[-1], some.end - 1)] >= target - 5 * day)[seen[-1] < some.end].all()


PINNED = [10.946381568908691, 9.396519660949707, 8.394614219665527, 9.192931175231934]


@pytest.mark.parametrize("policy", [Policy(4), Policy(3, 2), Policy(2, 0, 3), Policy(2, 1, 2)])
def test_windows_of_a_log(policy: Policy) -> None:
    """Windows cut from a log are what the fold makes of the same rows; a scorer under a policy sees these and nothing later."""
    log = made_log(ties=True)
    some = cases(log, log.bounds[1:] - 1)
    found = windows(log, some.begin, some.end, policy)
    for n, (a, b) in enumerate(zip(some.begin, some.end, strict=True)):
        raw = log.rows[a:b].tobytes()
        window = fold(None, [raw[i : i + ROW_BYTES] for i in range(0, len(raw), ROW_BYTES)], policy)
        assert found.rows[n][found.mask[n]].tobytes() == rows_of(window).tobytes()
    if not (policy.per_platform or policy.strong):
        np.testing.assert_array_equal(decayed_mean(64, policy)(log, some), decayed_mean(policy.overall)(log, some))


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


@pytest.mark.parametrize("change", [
    {"adapter": "lora"}, {"adapter": "adalora", "precision": "bf16", "accumulate": 2}, {"freeze": ("body.*", "residual*")},
    {"optimizer": "sgd"}, {"precision": "bf16", "accumulate": 2}, {"content": False},
    {"start_at_mean": False, "time": False, "distance": False, "platform": False, "behavior": False}, {"targets": "all-action"},
])  # fmt: skip
def test_switches(tmp_path: Path, change: dict[str, object]) -> None:
    """Every switch of the recipe trains, and what is frozen stays."""
    log = made_log()
    torch.manual_seed(0)
    out = train(log, leave_one_out(log), QUICK.model_copy(update=change), tmp_path)
    assert np.isfinite(out.losses).all()
    assert type(out.model) is SequenceEncoder
    assert not any("lora" in name for name, _ in out.model.named_parameters())
    if "freeze" in change:
        assert not out.model.residual.weight.any()


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


def test_report() -> None:
    """A report has every slice with its number of cases, and the decayed mean is found in it."""
    log = made_log()
    some = np.zeros(40, bool)
    some[:25] = True
    split = held_out_users(log, ~some, some)
    found = report(rank(decayed_mean(), log, split.test), log, split, split.test)
    assert found["all"]["cases"] == 25 == found["platform p1"]["cases"] + found["platform p2"]["cases"]
    assert 0 <= found["all"]["hr@10"]["low"] <= found["all"]["hr@10"]["mean"] <= found["all"]["hr@10"]["high"] <= 1
