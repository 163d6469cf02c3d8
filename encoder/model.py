"""The sequence encoder in torch: for training and export; a CPU worker runs its ONNX graph and never imports this.

Shape letters: B users, T events, D dims of an item vector, C channels, H heads.
Design (ENCODER in docs/encoder.md): pre-LN causal attention with a learned bias on distance, SwiGLU, output at the last position. The output is
added to the decayed mean of the item vectors by a last layer that starts at zero, so an untrained encoder is the baseline.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.baseline import HALF_LIFE
from encoder.features import NUMERIC, TIMES
from schemas.events import BEHAVIOR_CODE

PLATFORMS, BEHAVIORS, DISTANCES = 64, 16, 64


@dataclass(frozen=True)
class Preset:
    """Size of a body."""

    channels: int
    layers: int
    inner: int
    head: int = 32


PRESETS = {"xs": Preset(64, 2, 192), "s": Preset(128, 2, 352), "l": Preset(256, 4, 704)}


class Attention(nn.Module):
    """Causal self-attention with a bias on the distance in events."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.heads, self.head = channels // head, head
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.distance = nn.Embedding(DISTANCES, self.heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        b, t, c = x.shape
        q, k, v = (f(x).view(b, t, self.heads, self.head).transpose(1, 2) for f in (self.query, self.key, self.value))  # (B, H, T, C/H)
        at = torch.arange(t, device=x.device)
        back = at[:, None] - at[None, :]  # (T, T)
        bias = self.distance(back.clamp(0, DISTANCES - 1)).permute(2, 0, 1)  # (H, T, T)
        scores = q @ k.transpose(2, 3) / self.head**0.5 + bias
        scores = scores.masked_fill(back < 0, -1e9)
        mixed = scores.softmax(-1) @ v  # (B, H, T, C/H)
        return self.out(mixed.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    """Pre-LN attention and SwiGLU, each added through a learned gate."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        c = preset.channels
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.attention = Attention(c, preset.head)
        self.up, self.gate, self.down = nn.Linear(c, preset.inner), nn.Linear(c, preset.inner), nn.Linear(preset.inner, c)
        self.open1, self.open2 = nn.Linear(c, c), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + torch.sigmoid(self.open1(x)) * self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + torch.sigmoid(self.open2(x)) * self.down(F.silu(self.gate(y)) * self.up(y))


class SequenceEncoder(nn.Module):
    """Windows, as encoder.features.model_inputs gives them, -> interest vectors in the space of the item vectors."""

    def __init__(self, dims: int, preset: Preset) -> None:
        super().__init__()
        c = preset.channels
        self.item, self.numeric, self.time = nn.Linear(dims, c), nn.Linear(NUMERIC, c), nn.Linear(TIMES, c)
        self.platform, self.behavior = nn.Embedding(PLATFORMS, c), nn.Embedding(BEHAVIORS, c)
        self.blocks = nn.ModuleList(Block(preset) for _ in range(preset.layers))
        self.norm, self.out = nn.LayerNorm(c), nn.Linear(c, dims)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, items: Tensor, known: Tensor, platform: Tensor, behavior: Tensor, numeric: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B, T), (B, T), (B, T), (B, T, NUMERIC), (B, T, TIMES), (B,) -> (B, D), L2-normalised, zero where nothing is known."""
        x = self.item(items) + self.platform(platform) + self.behavior(behavior) + self.numeric(numeric) + self.time(times)
        for block in self.blocks:
            x = block(x)
        last = x[torch.arange(x.shape[0], device=x.device), lengths - 1]  # (B, C)
        base = decayed_mean(items, known, behavior, lengths)
        some = (known.sum(1, keepdim=True) > 0).to(items.dtype)
        return normalised(base + self.out(self.norm(last)) * some)


def decayed_mean(items: Tensor, known: Tensor, behavior: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, D), (B, T), (B, T), (B,) -> (B, D): encoder.baseline in torch."""
    back = lengths[:, None] - 1 - torch.arange(items.shape[1], device=items.device)  # (B, T)
    sign = 1 - 2 * (behavior == BEHAVIOR_CODE["hide"]).to(items.dtype)
    weight = torch.exp2(-back.clamp(min=0).to(items.dtype) / HALF_LIFE) * sign * known
    return normalised((weight[:, None, :] @ items)[:, 0])


def normalised(x: Tensor) -> Tensor:
    """(B, D) -> rows of length 1; zero rows stay zero."""
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
