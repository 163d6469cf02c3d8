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
