"""From a trained encoder to a release, and on from a release."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from encoder.bundle import Bundle, BundleError, open_bundle, read_residuals
from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.onnx_encoder import OnnxEncoder
from testkit.training_logs import QUICK, made_log
from testkit.validation import EverBetter
from training import quantise
from training.evaluate import rank
from training.export import examples, export, to_onnx
from training.finetune import Trained, train
from training.initial import residual_rows
from training.metrics import METRICS
from training.quantise import gated
from training.run import stored, warm
from training.scorers import model_scores, newest
from training.splits import leave_one_out
from training.tagging import tags

pytestmark = pytest.mark.usefixtures("one_layer")
LOG = made_log()
SPLIT = leave_one_out(LOG)


@pytest.fixture(scope="module")
def released(one_layer: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Bundle]:
    """A quickly trained encoder and its bundle."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        EverBetter(patch)  # else the untrained encoder may be the best, and be kept
        trained = train(LOG, SPLIT, QUICK.model_copy(update={"epochs": 3, "lr": 1e-2}), folder / "run")
    keys = LOG.catalogue.table.keys[np.flatnonzero(trained.residual)]
    trained.model.round_residuals()
    return trained, export(trained.model, folder / "b", "items-space", "xs", keys)


@pytest.mark.slow
def test_release_is_what_was_measured(released: tuple[Trained, Bundle]) -> None:
    """A release read again, on torch or on ONNX Runtime, gives the trained encoder's scores."""
    trained, bundle = released
    assert trained.model.residual.weight.abs().max() > 1e-3
    want = model_scores(trained.model, LOG, trained.residual)(LOG, SPLIT.test)
    model, residual = stored(bundle.folder, LOG)
    np.testing.assert_array_equal(residual, trained.residual)
    np.testing.assert_allclose(model_scores(model, LOG, residual)(LOG, SPLIT.test), want, atol=1e-6)
    onnx, table = OnnxEncoder(bundle), LOG.catalogue.table
    users = onnx.encode(newest(LOG, SPLIT.test, onnx.max_len), table)
    items = onnx.project(table.vectors[1 : LOG.catalogue.size], table.keys[1 : LOG.catalogue.size])
    np.testing.assert_allclose(users @ items.T, want[:, 1:], atol=1e-4)


@pytest.mark.slow
def test_no_machine_in_a_release(released: tuple[Trained, Bundle]) -> None:
    """Nothing in a release, nor in the shipped one, tells on which machine or from which folder it was made."""
    for bundle in (released[1], open_bundle("demo")):
        for path in bundle.folder.iterdir():
            data = path.read_bytes()
            for told in (str(Path(__file__).parents[2]), str(Path(torch.__file__).parents[1]), "model.py", "stack_trace"):
                assert told.encode() not in data, (path.name, told)


@pytest.mark.slow
def test_warm_start(released: tuple[Trained, Bundle], tmp_path: Path) -> None:
    """Training that goes on from a release begins with its weights; ID residuals follow their items, and new ones are zero."""
    trained, bundle = released
    counts = LOG.counts(SPLIT.trained(len(LOG.rows)))
    recipe = QUICK.model_copy(update={"residual_min_count": 5})
    residual = residual_rows(counts, recipe)
    assert 0 < residual.max() < trained.residual.max()
    encoder = warm(bundle, LOG, SPLIT, recipe, residual)
    at = torch.from_numpy(np.flatnonzero(residual))
    torch.testing.assert_close(encoder.residual.weight[residual[at]], trained.model.residual.weight[trained.residual[at]])
    rest = [{k: v for k, v in m.state_dict().items() if k != "residual.weight"} for m in (encoder, trained.model)]
    torch.testing.assert_close(*rest)
    everything = np.where(np.arange(LOG.catalogue.size) > 0, np.arange(LOG.catalogue.size), 0)
    more = warm(bundle, LOG, SPLIT, QUICK, everything)
    assert not more.residual.weight[everything[(trained.residual == 0)]].any()
    found, want = (rank(model_scores(m, LOG, r), LOG, SPLIT.test).rank for m, r in ((more, everything), (trained.model, trained.residual)))
    np.testing.assert_array_equal(found, want)
    with pytest.raises(BundleError, match=r"of another shape than training.preset = 's'"):
        warm(bundle, LOG, SPLIT, QUICK.model_copy(update={"preset": "s"}), residual)
    with pytest.raises(BundleError, match="reads vectors of 16 dims, the tower makes 8"):
        warm(open_bundle(bundle.folder), made_log(dims=8), SPLIT, QUICK, residual)


@pytest.mark.slow
def test_int8(released: tuple[Trained, Bundle]) -> None:
    """An int8 graph is smaller, keeps its vectors, and says what both forms were measured by."""
    trained, bundle = released
    graph, items = bundle.onnx.read_bytes(), bundle.items.read_bytes()
    keys, residuals = read_residuals(bundle.folder, bundle.manifest.dims)
    small, measured = gated(graph, items, keys, residuals, 8, LOG, SPLIT.test, examples(trained.model))
    assert len(small) < len(graph) / 1.5
    assert measured["int8 cosine"] >= quantise.COSINE
    assert measured["int8 time / float32 time"] > 0
    want = rank(model_scores(trained.model, LOG, trained.residual), LOG, SPLIT.test).rank
    assert measured["float32 hr@10"] == pytest.approx((want <= 10).mean())
    assert measured["float32 ndcg@10"] == pytest.approx(METRICS["ndcg@10"](want).mean(), abs=1e-4)
    assert measured["hr@10"] >= 0.99 * measured["float32 hr@10"] > 0


@pytest.mark.slow
def test_int8_refused(released: tuple[Trained, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix with an outlier that float32 never notices loses all else in int8: it is refused, with both forms' figures."""
    trained, bundle = released
    spoilt = copy.deepcopy(trained.model)
    with torch.no_grad():
        spoilt.norm.weight[0], spoilt.norm.bias[0] = 0, 0
        spoilt.out.weight[:, 0] = 1e5
    spoilt.config = replace(spoilt.config, start_at_mean=False)  # what is left is what the matrix makes
    graph, items = to_onnx(spoilt), bundle.items.read_bytes()
    keys, residuals = read_residuals(bundle.folder, bundle.manifest.dims)
    with pytest.raises(BundleError, match=r"int8: cosine 0\.\d+ with float32, want at least 0\.995"):
        gated(graph, items, keys, residuals, 8, LOG, SPLIT.test, [])
    monkeypatch.setattr(quantise, "COSINE", -1)
    with pytest.raises(BundleError, match=r"int8: HR@10 0\.\d+ instead of 0\.\d+, NDCG@10 0\.\d+ instead of 0\.\d+ on \d+ test targets"):
        gated(graph, items, keys, residuals, 8, LOG, SPLIT.test, [])


def test_tags_see_residuals() -> None:
    """The behavior report reads items as the scores do: with their ID residuals, here all that tells one item from another."""
    code = LOG.catalogue.size
    torch.manual_seed(0)
    model = SequenceEncoder(preset("xs", 16, dims=16, max_len=8, residuals=code - 1, content=False))
    wanted = 1 + np.arange(code) % 2  # the head is fitted to tell even items from odd ones
    with torch.no_grad():
        model.residual.weight[1:, 0] = torch.from_numpy(np.where(wanted == 1, 1.0, -1.0)[1:]).float()
        model.item.weight[:, 0] = 5 * torch.randn(64)
        states = 5 * model.item.weight[:, 0]
        model.behavior_head.weight[1], model.behavior_head.weight[2] = states, -states
    rows = LOG.rows.copy()
    rows["behavior"] = wanted[LOG.items]
    log = replace(LOG, rows=rows)
    found, blind = (tags(model, log, r, SPLIT.test) for r in (np.arange(code), np.zeros(code, np.int64)))
    assert all(r["f1-score"] > 0.9 for platform in found.values() for r in platform.values())
    assert any(r["f1-score"] < 0.7 for platform in blind.values() for r in platform.values())
