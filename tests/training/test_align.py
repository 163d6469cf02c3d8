"""Turning an encoder into the serving one's space."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from encoder.bundle import open_bundle
from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.onnx_encoder import OnnxEncoder
from training.align import Mixing, compatible, fit, rotated
from training.export import example, export

ITEM_DIMS, DIMS = 24, 16


def made(seed: int, **changes: Any) -> SequenceEncoder:
    """An encoder of random weights everywhere: also where an untrained one has zeros."""
    torch.manual_seed(seed)
    model = SequenceEncoder(preset("xs", ITEM_DIMS, dims=DIMS, max_len=12, residuals=30, dropout=0.0, **changes))
    model.eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 or name.endswith("bias"):
                p.add_(0.1 * torch.randn_like(p))
        model.residual.weight[0] = 0
    return model


def turn(seed: int) -> np.ndarray:
    return np.asarray(ortho_group.rvs(DIMS, random_state=seed))


def outputs(model: SequenceEncoder, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Interest vectors of random windows over the model's own items (7, E), and these items (31, E)."""
    r = np.random.default_rng(seed)
    vectors = r.standard_normal((31, ITEM_DIMS)).astype(np.float32)
    with torch.inference_mode():
        items = model.project(torch.from_numpy(vectors), torch.arange(31))
        inputs = {k: torch.from_numpy(v) for k, v in example(7, 12, DIMS, seed).items()}
        inputs["items"] = items[torch.from_numpy(r.integers(0, 31, (7, 12)))] * inputs["known"][..., None]
        return model(**inputs).numpy(), items.numpy()


SHAPES = [{}, {"start_at_mean": False}, {"content": False}, {"time": False, "distance": False}]


@given(st.integers(0, 10_000), st.sampled_from(SHAPES))
@settings(max_examples=25, deadline=None)
def test_scores_stay(seed: int, changes: dict[str, object]) -> None:
    """Turned by any rotation or reflection, every vector is turned and every score is as before."""
    model, r = made(seed, **changes), turn(seed)
    users, items = outputs(model, seed)
    turned_users, turned_items = outputs(rotated(model, r), seed)
    np.testing.assert_allclose(turned_items, items @ r, atol=1e-5)
    np.testing.assert_allclose(turned_users, users @ r, atol=1e-5)
    np.testing.assert_allclose(turned_users @ turned_items.T, users @ items.T, atol=1e-4)
    assert np.abs(turned_items - items).max() > 0.05


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_found_again(seed: int) -> None:
    """A space that was only turned is turned back, and told as the same; one of other items' vectors is not."""
    r = np.random.default_rng(seed)
    serving = r.standard_normal((200, DIMS))
    serving /= np.linalg.norm(serving, axis=1, keepdims=True)
    found = fit(serving @ turn(seed).T, serving)
    assert found is not None
    assert found.cosine == pytest.approx(1, abs=1e-9)
    assert found.cosine_before < 0.9
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(DIMS), atol=1e-9)
    other = fit(r.permutation(serving), serving)
    assert other is not None
    assert other.cosine < 0.6


def test_cannot_tell() -> None:
    """Other dims, or fewer anchors than two a dim, give no alignment; items without a vector are no anchors."""
    assert fit(np.ones((100, 4)), np.ones((100, 5))) is None
    assert fit(np.ones((9, 4)), np.ones((9, 4))) is None
    some = np.ones((40, 4))
    some[5:] = 0
    assert fit(some, np.ones((40, 4))) is None


@pytest.mark.slow
def test_folded_into_a_bundle(tmp_path: Path) -> None:
    """An encoder turned into the space of a release, exported under its space_id, gives that release's vectors of the same items."""
    keys = np.arange(1, 31, dtype=np.uint64)
    model = made(1, layers=1)  # the items' graph is looked at, not the windows'
    serving = export(rotated(model, turn(1)), tmp_path / "a", "tower", "xs", keys)
    vectors = np.random.default_rng(0).standard_normal((300, ITEM_DIMS)).astype(np.float32)
    of = np.concatenate([keys, np.zeros(270, np.uint64)])
    wanted = OnnxEncoder(serving).project(vectors, of)
    with torch.inference_mode():
        own = model.project(torch.from_numpy(vectors), torch.from_numpy(of.astype(np.int64))).numpy()
    found = fit(own, wanted)
    assert found is not None
    bundle = export(rotated(model, found.rotation), tmp_path / "b", "tower", "xs", keys, space_id=serving.manifest.space_id)
    assert open_bundle(bundle.folder).manifest.space_id == serving.manifest.space_id
    np.testing.assert_allclose(OnnxEncoder(bundle).project(vectors, of), wanted, atol=2e-3)  # residuals are float16 in a bundle


@pytest.mark.parametrize(
    ("cosine", "mixing", "same"),
    [
        (0.95, Mixing(0.5, 0.496, 0.51), True),
        (0.95, Mixing(0.5, 0.494, 0.51), False),
        (0.95, Mixing(0.5, 0.51, 0.49), False),
        (0.89, Mixing(0.5, 0.51, 0.51), False),
        (0.95, Mixing(0.0, 0.0, 0.0), True),
    ],
)
def test_minor_or_new(cosine: float, mixing: Mixing, same: bool) -> None:
    """A release keeps the space's id only if the anchors are near enough and neither mix loses more than it may; it says both figures."""
    r = np.random.default_rng(0)
    some = r.standard_normal((100, DIMS))
    found = fit(some, some)
    assert found is not None
    found = type(found)(found.rotation, cosine, 0.0, found.anchors)
    kept, why = compatible(found, mixing, 0.9, 0.01)
    assert kept is same
    assert f"{cosine:.4f}" in why
    assert f"{mixing.loss:.2%}" in why
    assert compatible(None, None, 0.9, 0.01)[0] is False
