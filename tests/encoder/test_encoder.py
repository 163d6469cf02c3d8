"""Baseline, runtime, model and bundle."""

import hashlib
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from encoder.base import BUCKETS, Projected
from encoder.baseline import Baseline
from encoder.bundle import (
    CONFIG,
    ITEMS,
    MANIFEST,
    ONNX,
    RESIDUALS,
    WEIGHTS,
    BundleError,
    Manifest,
    open_bundle,
    pack_residuals,
    publish,
    read_residuals,
)
from encoder.config import PRESETS, preset
from encoder.features import Features, ItemTable, featurize, model_inputs
from encoder.layers import Attention
from encoder.model import SequenceEncoder
from encoder.onnx_encoder import OnnxEncoder
from encoder.runtime import load_encoder
from encoder.torch_encoder import TorchEncoder
from schemas.events import BEHAVIOR_CODE
from schemas.windows import DTYPE, NO_DWELL, VERSION
from training import export as exporting
from training.export import PARITY, examples, export, parity, to_onnx
from training.quantise import COSINE, cosine, quantised

DIMS = 16


def table(n: int = 50) -> ItemTable:
    items, r = ItemTable(DIMS), np.random.default_rng(0)
    for key in range(1, n):
        v = r.standard_normal(DIMS)
        items.put(key, v / np.linalg.norm(v))
    return items


def window(keys: list[int], behaviors: list[str] | None = None) -> bytes:
    rows = np.zeros(len(keys), DTYPE)
    rows["item_key"], rows["ts_ms"], rows["event_id"] = keys, 1_700_000_000_000 + np.arange(len(keys)) * 977_000, np.arange(len(keys))
    rows["platform"], rows["dwell_ds"], rows["value"] = 1, NO_DWELL, np.nan
    rows["behavior"] = [BEHAVIOR_CODE[b] for b in behaviors] if behaviors else BEHAVIOR_CODE["view"]
    return VERSION + rows.tobytes()


WINDOWS = [window([5]), window([1, 2, 3]), window([999]), window(list(range(1, 41))), window([7, 999, 8], ["view", "buy", "hide"])]


def expected(window_keys: list[int], signs: list[int], items: ItemTable) -> np.ndarray:
    weights = [s * 0.5 ** (k / 3) for k, s in enumerate(reversed(signs))]
    total = sum(w * items.vectors[items.index(np.array([key], np.uint64))[0]] for w, key in zip(weights, reversed(window_keys), strict=True))
    return np.asarray(total / np.linalg.norm(total))


def test_baseline_by_hand() -> None:
    """The baseline is the decayed mean, newest first, a hide counting against."""
    items, baseline = table(), Baseline(DIMS, "s")
    found = baseline.encode(featurize(WINDOWS, items, 64), items)
    np.testing.assert_allclose(found[1], expected([1, 2, 3], [1, 1, 1], items), atol=1e-6)
    np.testing.assert_allclose(found[4], expected([7, 999, 8], [1, 1, -1], items), atol=1e-6)
    np.testing.assert_allclose(found[3], expected(list(range(9, 41)), [1] * 32, items), atol=1e-6)
    assert not found[2].any()


def test_untrained_is_baseline() -> None:
    """An untrained sequence encoder gives the baseline's vectors."""
    items = table()
    features = featurize([w for w in WINDOWS if len(w) <= 1 + 32 * 32], items, 32)
    torch.manual_seed(0)
    model = SequenceEncoder(preset("xs", DIMS, dims=DIMS)).eval()
    inputs = {k: torch.from_numpy(v) for k, v in model_inputs(features).items()}
    with torch.inference_mode():
        rows = model.project(torch.from_numpy(items.vectors), torch.zeros(len(items.vectors), dtype=torch.long))
        found = model(**{**inputs, "items": rows[inputs["items"].long()] * inputs["known"][..., None]}).numpy()
    np.testing.assert_allclose(found, Baseline(DIMS, "s").encode(features, items), atol=1e-5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = shaken("xs", residuals=3, layers=1)
    return export(model, tmp_path_factory.mktemp("bundles") / "xs", "items-space", "xs", np.array([5, 7, 11], np.uint64)).folder


def shaken(name: str, **changes: int) -> SequenceEncoder:
    """A preset with what starts at zero moved, so that nothing is equal by being nothing."""
    model = SequenceEncoder(preset(name, DIMS, dims=DIMS, max_len=32, **changes))
    for key, parameter in model.named_parameters():
        if key in ("out.weight", "residual.weight", "projector.down.weight") or ".bias." in key:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_parity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch, torch without the last-only short cut, and ONNX Runtime agree for every preset's widths and every bucket of lengths; int8 is close."""
    monkeypatch.setattr(exporting, "LENGTHS", ((1, 1), (4, 7), *((3, bucket) for bucket in BUCKETS)))
    torch.manual_seed(2)
    model = shaken(name, layers=2).eval()  # further ones repeat the second, and an export takes as long as there are layers
    graph = to_onnx(model)
    assert parity(model, graph) <= PARITY
    assert cosine(graph, quantised(graph), examples(model)) >= COSINE


def test_one_query() -> None:
    """The last event alone gets of attention what it gets among all, also where an adapter sits around a layer."""
    torch.manual_seed(3)
    attention, x, bias = Attention(64, 32), torch.randn(3, 9, 64), torch.randn(3, 2, 9, 9)
    for key in (attention.key, torch.nn.Sequential(attention.key, torch.nn.Linear(64, 64))):
        attention.key = key
        every, one = attention(x, x, bias), attention(x[:, -1:], x, bias[:, :, -1:])
        torch.testing.assert_close(one, every[:, -1:], atol=1e-5, rtol=1e-5)


def test_torch_encoder(bundle: Path) -> None:
    """What a worker with a GPU runs gives the vectors of ONNX Runtime, and projects items alike."""
    items, onnx, other = table(), OnnxEncoder(open_bundle(bundle)), TorchEncoder(open_bundle(bundle), "cpu")
    features = featurize(WINDOWS, items, 64)
    np.testing.assert_allclose(other.encode(features, items), onnx.encode(features, items), atol=1e-5)
    keys = np.array([0, 5, 6], np.uint64)
    np.testing.assert_allclose(other.project(items.vectors[1:4], keys), onnx.project(items.vectors[1:4], keys), atol=1e-5)


def test_items_change(bundle: Path) -> None:
    """A new, replaced or forgotten item vector counts from the next window on."""
    items, encoder = table(), OnnxEncoder(open_bundle(bundle))

    def encode() -> np.ndarray:
        found: np.ndarray = encoder.encode(featurize([window([1, 999])], items, 64), items)[0]
        return found

    before = encode()
    items.put(999, items.vectors[7])
    known = encode()
    assert not np.allclose(before, known, atol=1e-3)
    items.put(999, -items.vectors[7])
    assert not np.allclose(known, encode(), atol=1e-3)
    items.forget(999)
    np.testing.assert_allclose(encode()[:1], before[:1], atol=0.5)
    fresh = OnnxEncoder(open_bundle(bundle))
    np.testing.assert_allclose(encode(), fresh.encode(featurize([window([1, 999])], items, 64), items)[0], atol=1e-6)


def test_residuals_once(bundle: Path) -> None:
    """A bundle holds its ID residuals once, in float16; the torch encoder gets the very numbers that ONNX Runtime gets."""
    assert "residual.weight" not in load_file(bundle / WEIGHTS)
    keys, residuals = read_residuals(bundle, DIMS)
    assert keys.tolist() == [5, 7, 11]
    assert residuals.any()
    torch.manual_seed(1)
    np.testing.assert_array_equal(residuals, shaken("xs", residuals=3, layers=1).residual.weight.detach().numpy()[1:].astype(np.float16))
    again = SequenceEncoder.from_pretrained(str(bundle)).residual.weight.detach().numpy()
    np.testing.assert_array_equal(again, [np.zeros(DIMS), *residuals])


def test_other_residuals(bundle: Path, tmp_path: Path) -> None:
    """Residuals that are broken, of other dims or of another number are refused, and so is an export without an item for each."""
    shutil.copytree(bundle, tmp_path / "b")
    for data, message in (
        (b"PK\x03\x04 cut", "residuals.npz: "),
        (pack_residuals(np.arange(3), np.zeros((3, 2))), r"want \(3, 16\), got \(3, 2\)"),
        (pack_residuals(np.arange(2), np.zeros((2, DIMS))), "holds 2 residuals, config.json says 3"),
    ):
        (tmp_path / "b" / RESIDUALS).write_bytes(data)
        with pytest.raises(BundleError, match=message):
            SequenceEncoder.from_pretrained(str(tmp_path / "b"))
    with pytest.raises(BundleError, match="1 item keys for 3 ID residuals"):
        export(shaken("xs", residuals=3), tmp_path / "c", "items-space", "xs", np.array([5], np.uint64))


def test_older_format(bundle: Path, tmp_path: Path) -> None:
    """A bundle of format 2, which had its residuals in two files, is still read."""
    shutil.copytree(bundle, tmp_path / "b")
    SequenceEncoder.from_pretrained(str(bundle)).save_pretrained(tmp_path / "b")
    assert "residual.weight" in load_file(tmp_path / "b" / WEIGHTS)
    row = json.loads((tmp_path / "b" / MANIFEST).read_text())
    row["files"][WEIGHTS] = hashlib.sha256((tmp_path / "b" / WEIGHTS).read_bytes()).hexdigest()
    row["files"][CONFIG] = hashlib.sha256((tmp_path / "b" / CONFIG).read_bytes()).hexdigest()
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(row | {"format": 2}))
    items = table()
    newer, older = (TorchEncoder(open_bundle(f), "cpu").encode(featurize(WINDOWS, items, 64), items) for f in (bundle, tmp_path / "b"))
    np.testing.assert_array_equal(newer, older)


def test_residual(bundle: Path) -> None:
    """An item with an ID residual is projected otherwise than the same content without."""
    items, encoder = table(), OnnxEncoder(open_bundle(bundle))
    known, unknown = encoder.project(items.vectors[[5, 5]], np.array([5, 0], np.uint64))
    assert not np.allclose(known, unknown, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm([known, unknown], axis=1), 1, atol=1e-5)


def test_threads(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are the same, and a failure is as loud, on several threads, of which each has windows of its own."""
    items, one, three = table(), OnnxEncoder(open_bundle(bundle)), OnnxEncoder(open_bundle(bundle), 3)
    many, on, run = featurize(WINDOWS * 40, items, 64), set[int](), model_inputs

    def noted(features: Features) -> dict[str, np.ndarray]:
        on.add(threading.get_ident())
        time.sleep(0.01)  # so that nobody takes all
        return run(features)

    wanted = one.encode(many, items)
    monkeypatch.setattr("encoder.onnx_encoder.model_inputs", noted)
    np.testing.assert_allclose(three.encode(many, items), wanted, atol=1e-5)
    assert len(on) == 3
    np.testing.assert_allclose(three.encode(featurize(WINDOWS[:1], items, 64), items), wanted[:1], atol=1e-5)
    monkeypatch.setattr("encoder.onnx_encoder.model_inputs", lambda features: {})
    with pytest.raises(KeyError):
        three.encode(many, items)


def test_batch_is_each_alone(bundle: Path) -> None:
    """A user's vector does not depend on who else is in the batch, is of length 1, and zero while every item is unknown."""
    items, encoder = table(), load_encoder(str(bundle), "items-space", DIMS)
    together = encoder.encode(featurize(WINDOWS, items, 64), items)
    for i, one in enumerate(WINDOWS):
        np.testing.assert_allclose(encoder.encode(featurize([one], items, 64), items)[0], together[i], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), [1, 1, 0, 1, 1], atol=1e-5)
    assert not np.allclose(together, Baseline(DIMS, "s").encode(featurize(WINDOWS, items, 64), items), atol=1e-2)


def test_load(bundle: Path) -> None:
    """`baseline` and a folder are encoders; a bundle for another tower is refused saying both."""
    assert isinstance(load_encoder(str(bundle), "items-space", DIMS), OnnxEncoder)
    assert load_encoder("baseline", "x", 8).dims == 8
    with pytest.raises(BundleError, match=r"item_dims = 16.*makes 8"):
        load_encoder(str(bundle), "items-space", 8)
    with pytest.raises(BundleError, match="item_space_id = 'items-space'"):
        load_encoder(str(bundle), "other", DIMS)


def _break_hash(folder: Path) -> None:
    (folder / ONNX).write_bytes((folder / ONNX).read_bytes()[:-1])


def _edit(**changes: object) -> object:
    def edit(folder: Path) -> None:
        row = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(row | changes))

    return edit


BROKEN = {
    "no items": (_edit(files={ONNX: "0"}), "items.onnx"),
    "cut file": (_break_hash, "want sha256"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "no manifest.json"),
    "no folder": (shutil.rmtree, "no such folder"),
    "not JSON": (lambda f: (f / MANIFEST).write_text("{"), "want JSON"),
    "no file": (lambda f: (f / ONNX).unlink(), "No such file"),
    "format": (_edit(format=9), "want format 3, got 9"),
    "dims": (_edit(dims="many"), "whole dims"),
    "unknown field": (_edit(colour="red"), "colour"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_refused(bundle: Path, tmp_path: Path, how: str) -> None:
    """A bundle that is not whole and as its manifest says is refused, with what is wrong."""
    break_it, message = BROKEN[how]
    shutil.copytree(bundle, tmp_path / "b")
    break_it(tmp_path / "b")  # type: ignore[operator]
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "b")


def test_publish_is_atomic(tmp_path: Path) -> None:
    """A bundle appears whole or not at all, and is never overwritten."""
    manifest = Manifest("v", "s", "i", 2, 2, 4)
    with pytest.raises(TypeError):
        publish(tmp_path / "b", manifest, {ONNX: b"x", "bad": None})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []
    files = {ONNX: b"x", ITEMS: b"y", RESIDUALS: b"z"}
    publish(tmp_path / "b", manifest, files)
    assert open_bundle(tmp_path / "b").manifest.version == "v"
    with pytest.raises(BundleError, match="never changed"):
        publish(tmp_path / "b", manifest, files)


def test_projection_that_failed() -> None:
    """Items whose projection failed are projected by the next attempt, not left out."""
    table, fails = ItemTable(2), [True]
    for key in range(1, 4):
        table.put(key, np.array([key, 0], np.float32))

    def project(vectors: np.ndarray, keys: np.ndarray) -> np.ndarray:
        if fails.pop():
            raise RuntimeError("no GPU")
        fails.append(False)
        return vectors * 2

    projected = Projected(project, 2)
    with pytest.raises(RuntimeError, match="no GPU"):
        projected.of(table)
    fails.append(False)
    assert projected.of(table)[:4, 0].tolist() == [0, 2, 4, 6]
