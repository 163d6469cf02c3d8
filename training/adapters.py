"""Adapters through peft: LoRA and AdaLoRA in any body, prefixes in a GPT body. Merged into the weights before export where they can be."""

import fnmatch
import warnings
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor

from encoder.model import SequenceEncoder
from encoder.pretrained_body import PretrainedBody
from encoder.recipe import Recipe
from training.bodies import with_prefix
from training.splits import DataError

ORTHOGONAL = 0.5  # weight of AdaLoRA's regularizer, peft's default
# AdaLoRA's schedule, shares of all steps (arXiv 2303.10512, section 3.3 and table 8): the ranks begin half as many again as they end,
# stay so at first, fall with a cubic, and are settled in the last part.
INITIAL, WARMUP, SETTLED, ALLOCATIONS = 1.5, 0.1, 0.3, 100


def adapt(encoder: SequenceEncoder, recipe: Recipe, steps: int) -> SequenceEncoder:
    """The encoder with adapters in its layers, whose own weights are frozen, for a run of so many optimizer steps. Raises DataError."""
    if recipe.adapter == "none":
        return encoder
    if recipe.adapter == "prefix":
        try:
            encoder = with_prefix(encoder, recipe.adapter_rank)
        except ValueError as error:
            raise DataError(str(error)) from None
    else:
        holder = _holder(encoder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft sets it itself, module by module
            holder.body = get_peft_model(holder.body, _config(holder.body, recipe, steps))
    for name, _ in encoder.named_parameters():
        for pattern in recipe.freeze:
            if ("lora_" in name or name == "body.prefix") and fnmatch.fnmatch(name, pattern):
                raise DataError(f"training.freeze: {pattern!r} names the adapters too; with training.adapter the layers are frozen anyway")
    return encoder


def linears(body: torch.nn.Module) -> list[str]:
    """Names of the linear maps in a body, where adapters can go."""
    return [name for name, module in body.named_modules() if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"]


def _holder(encoder: SequenceEncoder) -> Any:
    """What has the layers as its `body`: the maps around a Hugging Face transformer are new, and trained whole."""
    return encoder.body if isinstance(encoder.body, PretrainedBody) else encoder


def _config(body: torch.nn.Module, recipe: Recipe, steps: int) -> Any:
    targets = linears(body)
    rank = recipe.adapter_rank
    if recipe.adapter == "lora":
        return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    return AdaLoraConfig(
        target_r=rank, init_r=max(rank + 1, round(INITIAL * rank)), lora_alpha=2 * rank, target_modules=targets, total_step=steps,
        tinit=int(WARMUP * steps), tfinal=int(SETTLED * steps), deltaT=max(1, steps // ALLOCATIONS),
    )  # fmt: skip


class Ranks:
    """AdaLoRA's rank of every matrix, allocated anew while training goes on; part of a checkpoint. Does nothing for other adapters."""

    def __init__(self, encoder: SequenceEncoder, recipe: Recipe) -> None:
        self._model: Any = _holder(encoder).body.base_model if recipe.adapter == "adalora" else None
        self._done = 0

    def step(self) -> None:
        """After an optimizer's step, while its gradients are still there."""
        self._done += 1
        if self._model is not None:
            self._model.update_and_allocate(self._done)

    def state_dict(self) -> dict[str, Any]:
        """Steps that are done, how important every weight was, and which ranks are kept: peft stores none of them."""
        if self._model is None:
            return {"done": self._done}
        allocator = self._model.rankallocator
        kept = self._model.peft_config[self._model.trainable_adapter_name].rank_pattern
        return {"done": self._done, "importance": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._done = state["done"]
        if self._model is None:
            return
        allocator, device = self._model.rankallocator, next(self._model.parameters()).device
        allocator.exp_avg_ipt = {k: v.to(device) for k, v in state["importance"].items()}
        allocator.exp_avg_unc = {k: v.to(device) for k, v in state["uncertainty"].items()}
        allocator.ipt = {k: torch.zeros_like(v) for k, v in allocator.exp_avg_ipt.items()}  # of the last step only; peft looks whether it is there
        self._model.peft_config[self._model.trainable_adapter_name].rank_pattern = state["kept"]


def adaptation(encoder: SequenceEncoder, recipe: Recipe) -> Tensor | float:
    """The adapters' term of the loss: AdaLoRA keeps its factors orthogonal, |PᵀP - 1| + |QQᵀ - 1| (arXiv 2303.10512, eq. 4)."""
    if recipe.adapter != "adalora":
        return 0.0
    parts = []
    for name, p in encoder.body.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            parts.append((gram - torch.eye(len(gram), device=p.device)).norm())
    return ORTHOGONAL * torch.stack(parts).mean()


def merged(encoder: SequenceEncoder, recipe: Recipe) -> SequenceEncoder:
    """The encoder with its adapters folded into the weights."""
    if recipe.adapter in ("lora", "adalora"):
        holder = _holder(encoder)
        holder.body = holder.body.merge_and_unload()
    return encoder
