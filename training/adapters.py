"""Adapters through peft: LoRA and AdaLoRA in any body, prefixes in a GPT body. Merged into the weights before export where they can be."""

from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor

from encoder.model import SequenceEncoder
from encoder.recipe import Recipe

ORTHOGONAL = 0.5  # weight of AdaLoRA's regularizer, peft's default


def adapt(encoder: SequenceEncoder, recipe: Recipe) -> SequenceEncoder:
    """The encoder with adapters in its body; the body's own weights are frozen."""
    if recipe.adapter == "none":
        return encoder
    if recipe.adapter == "prefix":
        from encoder.pretrained import PretrainedBody
        from training.splits import DataError

        if not isinstance(encoder.body, PretrainedBody) or not encoder.body.takes_prefix:
            raise DataError("training.adapter = 'prefix' needs a GPT body (training.body)")
        encoder.body.requires_grad_(False)
        encoder.body.add_prefix(recipe.adapter_rank)
        return encoder
    targets = linears(encoder.body)
    if recipe.adapter == "lora":
        config: Any = LoraConfig(r=recipe.adapter_rank, lora_alpha=2 * recipe.adapter_rank, target_modules=targets, fan_in_fan_out=False)
    else:
        config = AdaLoraConfig(r=recipe.adapter_rank, init_r=recipe.adapter_rank, target_modules=targets, total_step=1)
    encoder.body = get_peft_model(encoder.body, config)
    return encoder


def linears(body: torch.nn.Module) -> list[str]:
    """Names of the linear maps in a body, where adapters can go."""
    return [name for name, module in body.named_modules() if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"]


def adaptation(encoder: SequenceEncoder, recipe: Recipe) -> Tensor | float:
    """What adapters add to the loss: AdaLoRA keeps its factors orthogonal, |PᵀP - 1| + |QQᵀ - 1| (arXiv 2303.10512, eq. 4)."""
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
        encoder.body = encoder.body.merge_and_unload()
    return encoder
