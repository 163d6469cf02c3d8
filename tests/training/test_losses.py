"""Losses by hand, and the start that they begin from."""

import math

import pytest
import torch
from torch.nn import functional as F

from encoder.config import preset
from encoder.layers import LENGTH
from encoder.model import SequenceEncoder
from training import losses


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


def test_whitened_start() -> None:
    """An untrained encoder projects a catalogue's vectors to unit covariance, up to one scale; too small a catalogue is left as it is."""
    r = torch.manual_seed(0)
    vectors = torch.randn(500, 16, generator=r) @ torch.randn(16, 16, generator=r) + 3
    projector = SequenceEncoder(preset("xs", 16, dims=16)).projector
    projector.whiten(vectors)
    covariance = torch.cov(projector.direct(vectors).T)
    torch.testing.assert_close(covariance / covariance[0, 0], torch.eye(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(projector.direct(vectors).norm(dim=1).mean(), torch.tensor(LENGTH), atol=1e-3, rtol=0)


def unit(rows: int, dims: int, generator: torch.Generator) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dims, generator=generator), dim=1)


def test_weights_of_positions() -> None:
    """Every loss is the sum of the positions' losses, each times its own weight, and the parts of one are not mixed up with another's."""
    r = torch.manual_seed(1)
    users, items, target, weight = unit(4, 6, r), unit(7, 6, r), torch.tensor([2, 6, 0, 2]), torch.tensor([0.5, 0.0, 2.0, 1.0])
    tau = torch.tensor(0.25)
    each = F.cross_entropy(users @ items.T / 0.25, target, reduction="none")
    torch.testing.assert_close(losses.retrieval(users, target, items, tau, weight), (each * weight).sum())
    logits = torch.randn(4, 3, generator=r)
    label = torch.tensor([0, 2, 1, 2])
    each = logits.logsumexp(1) - logits[torch.arange(4), label]
    torch.testing.assert_close(losses.behavior(logits, label, weight), (each * weight).sum())
    flags = torch.tensor([1, 0, 0, 1])
    each = torch.stack([-torch.sigmoid(x if y else -x).log() for x, y in zip(logits[:, 0], flags.tolist(), strict=True)])
    torch.testing.assert_close(losses.classes(logits[:, 0], flags, weight), (each * weight).sum())
    each = torch.tensor([1.0, 9.0, 0.25, 4.0])
    torch.testing.assert_close(losses.value(torch.tensor([1.0, 3.0, 0.5, -2.0]), torch.zeros(4), weight), (each * weight).sum())


def test_log_q() -> None:
    """A negative that is expected twice as often counts half, the positive once; a negative that is the position's target counts for nothing."""
    r = torch.manual_seed(2)
    users, positives, negatives = unit(3, 5, r), unit(3, 5, r), unit(4, 5, r)
    expected, weight, tau = torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.tensor([1.0, 0.5, 2.0]), torch.tensor(0.5)
    hits = torch.tensor([0, 2]), torch.tensor([1, 3])
    positive = (2 * users * positives).sum(1).exp()
    share = (2 * users @ negatives.T).exp() / expected
    share[hits] = 0
    want = (((positive + share.sum(1)) / positive).log() * weight).sum()
    torch.testing.assert_close(losses.sampled_retrieval(users, positives, negatives, expected.log(), hits, tau, weight), want)


def test_pairs() -> None:
    """All pairs of equal numbers are found, the first rising; numbers that only one side has are in none."""
    row, column = losses.pairs(torch.tensor([7, 1, 5, 7]), torch.tensor([5, 7, 9, 7]))
    assert row.tolist() == [0, 0, 2, 3, 3]
    assert sorted(zip(row.tolist(), column.tolist(), strict=True)) == [(0, 1), (0, 3), (2, 0), (3, 1), (3, 3)]
    assert [part.tolist() for part in losses.pairs(torch.tensor([1, 2]), torch.tensor([3]))] == [[], []]


def test_log_sum_exp_of_many() -> None:
    """More positions than are looked at at once, and products far beyond what an exponential holds, are what torch makes of them."""
    r = torch.manual_seed(3)
    users, items = 100 * torch.randn(2 * losses.ROWS + 3, 4, generator=r), torch.randn(6, 4, generator=r)
    users.requires_grad_()
    items.requires_grad_()
    out, want = losses.log_sum_exp(users, items), (users @ items.T).logsumexp(1)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, want)
    for a, b in zip(torch.autograd.grad(out.sum(), (users, items)), torch.autograd.grad(want.sum(), (users, items)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-2)


def test_log_sum_exp_in_half_precision() -> None:
    """Under autocast products are made of bfloat16, sums and the result are float32, and gradients have the type of what they are of."""
    r = torch.manual_seed(4)
    users, items = torch.randn(5, 64, generator=r), torch.randn(9, 64, generator=r)
    users.requires_grad_()
    items.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = losses.log_sum_exp(users, items)
    halves = users.detach().bfloat16() @ items.detach().bfloat16().T
    torch.testing.assert_close(out, halves.float().logsumexp(1))
    assert not torch.equal(out, losses.log_sum_exp(users, items))
    got = torch.autograd.grad(out.sum(), (users, items))
    assert [g.dtype for g in got] == [torch.float32, torch.float32]
    for a, b in zip(got, torch.autograd.grad((users @ items.T).logsumexp(1).sum(), (users, items)), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
    half = users.detach().bfloat16().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.log_sum_exp(half, items.bfloat16()).sum(), half)
    assert gradient.dtype == torch.bfloat16


def test_gradients_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What many pieces add to the gradient of a candidate is not rounded to bfloat16 on the way, which would swallow it."""
    monkeypatch.setattr(losses, "ROWS", 1)
    users, items = torch.ones(1000, 2), torch.zeros(2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = losses.log_sum_exp(users, items)
    (gradient,) = torch.autograd.grad(out.sum(), items)
    torch.testing.assert_close(gradient, torch.full((2, 2), 500.0))
