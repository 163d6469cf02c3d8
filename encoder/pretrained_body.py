"""Any Hugging Face transformer (BERT or GPT family) as the body: event tokens go in as `inputs_embeds`. Needs transformers (extra `train`)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from encoder.config import EncoderConfig
from encoder.layers import last_of


class PretrainedBody(nn.Module):
    """Two linear maps around a transformer. It attends causally, also where it was pre-trained to look both ways: later events are targets."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        row = dict(config.body)
        self.prefix_length = int(row.pop("prefix_length", 0))
        hub = AutoConfig.for_model(**row)
        self.body = AutoModel.from_config(hub, attn_implementation="eager")
        self.takes_prefix = hub.model_type == "gpt2"
        self.into, self.back = nn.Linear(config.channels, hub.hidden_size), nn.Linear(hub.hidden_size, config.channels)
        self.longest = int(hub.max_position_embeddings)
        self.prefix: nn.Parameter | None = None
        if self.prefix_length:
            self.add_prefix(self.prefix_length)
        for name in ("word_embeddings", "wte", "pooler"):  # words are never looked up
            _drop(self.body, name)

    def add_prefix(self, length: int) -> None:
        """Learned keys and values in front of every layer's."""
        c = self.body.config
        self.prefix_length = length
        self.prefix = nn.Parameter(torch.randn(length, c.n_layer, 2, c.n_head, c.n_embd // c.n_head) * 0.02)

    def forward(self, x: Tensor, seconds: Tensor, lengths: Tensor, last_only: bool) -> Tensor:
        """(B, T, C), (B, T) unused, (B,) -> (B, T, C), or (B, 1, C)."""
        b, t = x.shape[:2]
        mask = (torch.arange(t, device=x.device)[None, :] < lengths[:, None]).long()
        more: dict[str, Any] = {}
        if self.prefix is not None:
            from transformers import DynamicCache

            kv = self.prefix.permute(1, 2, 3, 0, 4)[:, :, None].expand(-1, -1, b, -1, -1, -1)  # (layers, 2, B, H, P, E)
            more["past_key_values"] = DynamicCache([(layer[0], layer[1]) for layer in kv])
            mask = torch.cat([mask.new_ones(b, self.prefix_length), mask], 1)
            more["position_ids"] = torch.arange(t, device=x.device)[None]
        hidden = self.body(inputs_embeds=self.into(x), attention_mask=mask, use_cache=bool(more), **more).last_hidden_state
        out = self.back(hidden)
        return last_of(out, lengths)[:, None] if last_only else out


def _drop(module: nn.Module, name: str) -> None:
    for child in module.modules():
        if isinstance(getattr(child, name, None), nn.Module):
            setattr(child, name, None)
