"""The sequence encoder in torch: for training, for export, and for a worker with a GPU; a CPU worker runs its ONNX graph and never imports this.

Shape letters: B users, T events, D dims of a tower's vector, E dims of the interest space, C channels, H heads.

Design: a LiGR body (arXiv 2502.03417: pre-LN, SwiGLU, sigmoid gates on both residuals) on content vectors, with HSTU's learned bias on distance
and on elapsed time (arXiv 2402.17152) and PinnerFormer's event inputs (arXiv 2205.04507). The output is added to the decayed mean of the item
vectors by a last layer that starts at zero, so that training starts at the baseline.
"""

import contextlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.baseline import HALF_LIFE
from encoder.bundle import RESIDUALS, BundleError, read_residuals
from encoder.features import NUMERIC, TIMES
from schemas.events import BEHAVIOR_CODE, BEHAVIORS

PLATFORMS, BEHAVIOR_SLOTS = 64, 16
MASK = BEHAVIOR_SLOTS - 1
"""Behavior of an event whose own is hidden from the model."""
EXACT, DISTANCES, LONGEST = 64, 96, 512
"""Distances up to EXACT have a bias of their own, longer ones share DISTANCES - EXACT logarithmic buckets up to LONGEST."""
LENGTH = 0.3
"""Of an untrained item before it is normalised: the shorter, the faster a step turns it (docs/log.md has the figures)."""
TIME_BUCKETS = 32
"""One a factor of two: 1 s to 136 years."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder: everything that its weights need to be read again."""

    item_dims: int
    """D."""
    dims: int = 128
    """E."""
    channels: int = 128
    layers: int = 2
    inner: int = 352
    head: int = 32
    max_len: int = 64
    """How many of the newest events it looks at."""
    dropout: float = 0.2
    residuals: int = 0
    """Items with an ID residual."""
    residual_dropout: float = 0.5
    """Share of items whose residual is hidden in a training step, so that the content alone stays good."""
    content: bool = True
    """False: IDs alone."""
    platform: bool = True
    behavior: bool = True
    time: bool = True
    """Time of day and gaps as inputs, and the bias on elapsed time. Off for logs that have an order only."""
    distance: bool = True
    """The bias on the distance in events."""
    start_at_mean: bool = True
    """Add the output to the decayed mean."""
    body: dict[str, Any] = field(default_factory=dict)
    """Config of a Hugging Face transformer that takes the place of our own layers; empty for ours."""


PRESETS: dict[str, dict[str, Any]] = {
    "xs": {"channels": 64, "layers": 2, "inner": 192},
    "s": {"channels": 128, "layers": 2, "inner": 352},
    "l": {"channels": 256, "layers": 4, "inner": 704},
}


def preset(name: str, item_dims: int, **changes: Any) -> EncoderConfig:
    """A preset, changed in places. Raises KeyError for a name that is none."""
    return replace(EncoderConfig(item_dims, **PRESETS[name]), **changes)


class ItemProjector(nn.Module):
    """Tower vectors and ID residuals -> the interest space. The linear path starts as the largest whitened components: day 0 is kept."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.direct = nn.Linear(config.item_dims, config.dims)
        self.up, self.down = nn.Linear(config.item_dims, 256), nn.Linear(256, config.dims)
        self.content = config.content
        self.direct.weight.data.copy_(LENGTH * torch.eye(config.dims, config.item_dims))
        nn.init.zeros_(self.direct.bias)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, vectors: Tensor, residuals: Tensor) -> Tensor:
        """(n, D), (n, E) -> (n, E), L2-normalised."""
        if not self.content:
            return normalised(residuals)
        return normalised(self.direct(vectors) + self.down(F.gelu(self.up(vectors))) + residuals)

    def whiten(self, vectors: Tensor) -> None:
        """Start the linear path as the whitening (WhitenRec, arXiv 2402.02816) of a catalogue's own vectors (n, D), n > D."""
        mean, dims = vectors.mean(0), self.direct.out_features
        values, axes = torch.linalg.eigh(torch.cov((vectors - mean).T.double()))
        top = values.argsort(descending=True)[:dims]
        matrix = (axes[:, top] / (values[top] + 1e-8).sqrt()).T.to(vectors.dtype)  # (E, D)
        matrix *= LENGTH / ((vectors - mean) @ matrix.T).norm(dim=1).mean()
        with torch.no_grad():
            self.direct.weight[: len(matrix)] = matrix
            self.direct.bias[: len(matrix)] = -matrix @ mean


class Bias(nn.Module):
    """What attention adds for how far back an event lies, in events and in time."""

    def __init__(self, heads: int, distance: bool, time: bool) -> None:
        super().__init__()
        self.distance = nn.Embedding(DISTANCES, heads) if distance else None
        self.time = nn.Embedding(TIME_BUCKETS + 1, heads) if time else None
        far = torch.arange(LONGEST) / EXACT
        buckets = EXACT + (far.clamp(min=1).log2() * (DISTANCES - EXACT) / 3).long()
        self.register_buffer("bucket", torch.where(torch.arange(LONGEST) < EXACT, torch.arange(LONGEST), buckets.clamp(max=DISTANCES - 1)), False)
        for table in (self.distance, self.time):
            if table is not None:
                nn.init.zeros_(table.weight)

    def forward(self, back: Tensor, elapsed: Tensor) -> Tensor:
        """(b, Q, T) events and (B, Q, T) seconds between query and key; b is 1 or B -> (b or B, H, Q, T), -1e9 for what comes after the query."""
        out = torch.zeros(1, 1, 1, 1, device=elapsed.device)
        if self.distance is not None:
            out = out + self.distance(self.bucket[back.clamp(0, LONGEST - 1)]).permute(0, 3, 1, 2)
        if self.time is not None:
            # Between two buckets the bias is interpolated: a rounding of the logarithm must not move it.
            x = (elapsed.clamp(min=0) + 1).log2().clamp(max=TIME_BUCKETS - 1.0)
            low = x.floor()
            share = (x - low)[..., None]
            at = low.long()
            out = out + (self.time(at) * (1 - share) + self.time(at + 1) * share).permute(0, 3, 1, 2)
        return out.masked_fill((back < 0)[:, None], -1e9)


class Attention(nn.Module):
    """Causal self-attention with a given bias."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.heads, self.head = channels // head, head
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, asking: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """(B, Q, C), (B, T, C), (B, H, Q, T) -> (B, Q, C)."""
        q, k, v = self._split(self.query(asking) * self.head**-0.5), self._split(self.key(x)), self._split(self.value(x))  # (B, H, ·, C/H)
        scores = q @ k.transpose(2, 3)
        scores = scores + bias.to(scores.dtype)
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # it would widen (B, H, Q, T) to float32 and back
                mixed = scores.softmax(-1) @ v
        else:
            mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, self.head)).transpose(1, 2)


class Block(nn.Module):
    """Pre-LN attention and SwiGLU, each added through a learned gate."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        c = config.channels
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.attention = Attention(c, config.head)
        self.bias = Bias(c // config.head, config.distance, config.time)
        self.up, self.gate, self.down = nn.Linear(c, config.inner), nn.Linear(c, config.inner), nn.Linear(config.inner, c)
        self.open1, self.open2 = nn.Linear(c, c), nn.Linear(c, c)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, asking: Tensor, back: Tensor, elapsed: Tensor) -> Tensor:
        """All events (B, T, C), those that ask (B, Q, C), Bias's inputs -> (B, Q, C)."""
        mixed = self.attention(self.norm1(asking), self.norm1(x), self.bias(back, elapsed))
        y = asking + torch.sigmoid(self.open1(asking)) * self.drop(mixed)
        z = self.norm2(y)
        return y + torch.sigmoid(self.open2(y)) * self.drop(self.down(F.silu(self.gate(z)) * self.up(z)))


class OwnBody(nn.Module):
    """Our layers; the last one is computed for the last event alone when only that is asked for."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, x: Tensor, seconds: Tensor, lengths: Tensor, last_only: bool) -> Tensor:
        """(B, T, C), (B, T), (B,) -> (B, T, C), or (B, 1, C)."""
        at = torch.arange(x.shape[1], device=x.device)
        every = (at[:, None] - at[None, :])[None]  # (1, T, T)
        for n, block in enumerate(self.blocks):
            if last_only and n == len(self.blocks) - 1:
                end = lengths - 1
                asking = last_of(x, lengths)[:, None]
                now = seconds.gather(1, end[:, None])  # (B, 1)
                return block(x, asking, (end[:, None] - at[None, :])[:, None], (now - seconds)[:, None])
            x = block(x, x, every, seconds[:, :, None] - seconds[:, None, :])
        return x


class SequenceEncoder(nn.Module, PyTorchModelHubMixin, library_name="currents"):
    """Windows -> interest vectors, items -> the same space.

    `from_pretrained` and `save_pretrained` read and write config.json and safetensors; of a bundle `from_pretrained` reads the residuals too.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config, c = config, config.channels
        self.projector = ItemProjector(config)
        self.residual = nn.Embedding(config.residuals + 1, config.dims, padding_idx=0)
        nn.init.zeros_(self.residual.weight)
        self.item, self.numeric, self.time = nn.Linear(config.dims, c), nn.Linear(NUMERIC, c), nn.Linear(TIMES, c)
        self.platform, self.behavior = nn.Embedding(PLATFORMS, c), nn.Embedding(BEHAVIOR_SLOTS, c)
        for table in (self.platform, self.behavior):
            nn.init.normal_(table.weight, std=0.02)
        if config.body:
            from encoder.pretrained import PretrainedBody

            self.body: nn.Module = PretrainedBody(config)
        else:
            self.body = OwnBody(config)
        self.drop = nn.Dropout(config.dropout)
        self.norm, self.out = nn.LayerNorm(c), nn.Linear(c, config.dims)
        if config.start_at_mean:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)
        self.log_half_life = nn.Parameter(torch.tensor(HALF_LIFE).log())
        weight = torch.ones(BEHAVIOR_SLOTS)
        weight[BEHAVIOR_CODE["hide"]] = -1.0
        self.worth = nn.Parameter(weight)  # of a behavior, in the decayed mean
        self.log_temperature = nn.Parameter(torch.tensor(0.05).log())
        # Heads of the further tasks, read by training and evaluation only.
        self.behavior_head, self.class_head, self.value_head = nn.Linear(c, BEHAVIOR_SLOTS), nn.Linear(c, 1), nn.Linear(c, 1)
        self.register_buffer("value_mean", torch.zeros(PLATFORMS))
        self.register_buffer("value_scale", torch.ones(PLATFORMS))

    @classmethod
    def _from_pretrained(cls, **arguments: Any) -> "SequenceEncoder":
        # The library says on stdout that it loads; stdout is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            model: SequenceEncoder = super()._from_pretrained(**arguments)
        folder = Path(arguments["model_id"])
        if (folder / RESIDUALS).exists():
            residuals = read_residuals(folder, model.config.dims)[1]
            if len(residuals) != model.config.residuals:
                raise BundleError(f"{folder / RESIDUALS}: holds {len(residuals)} residuals, config.json says {model.config.residuals}")
            with torch.no_grad():
                model.residual.weight[1:] = torch.from_numpy(residuals)
        return model

    def round_residuals(self) -> None:
        """Make the ID residuals what a bundle holds of them: what was measured before an export is what is measured after it."""
        with torch.no_grad():
            self.residual.weight.copy_(self.residual.weight.half().float())

    @property
    def temperature(self) -> Tensor:
        """τ of the score u·v/τ, at least .01."""
        return self.log_temperature.exp().clamp(min=0.01)

    def project(self, vectors: Tensor, residual: Tensor, drop: bool = False) -> Tensor:
        """Tower vectors (n, D), rows of the ID residual (n,), 0 for none -> (n, E), L2-normalised."""
        r = self.residual(residual)
        if drop and self.config.content:
            r = r * (torch.rand(len(r), 1, device=r.device) >= self.config.residual_dropout)
        return self.projector(vectors, r)

    def tokens(self, items: Tensor, platform: Tensor, behavior: Tensor, numeric: Tensor, times: Tensor) -> Tensor:
        """Event tokens: items (B, T, E), codes (B, T), numeric (B, T, NUMERIC), times (B, T, TIMES) -> (B, T, C)."""
        config = self.config
        value = (numeric[..., :1] - self.value_mean[platform][..., None] * numeric[..., 2:3]) / self.value_scale[platform][..., None]
        x = self.item(items) + self.numeric(torch.cat([value, numeric[..., 1:]], -1))
        if config.platform:
            x = x + self.platform(platform)
        if config.behavior:
            x = x + self.behavior(behavior)
        if config.time:
            x = x + self.time(times)
        return x

    def states(
        self, items: Tensor, known: Tensor, platform: Tensor, behavior: Tensor, numeric: Tensor, times: Tensor, seconds: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `forward` takes -> at every event the hidden state (B, T, C) and the interest vector (B, T, E) of the window that ends there."""
        x = self.drop(self.tokens(items, platform, behavior, numeric, times))
        hidden = self.norm(self.body(x, seconds, lengths, False))
        at = torch.arange(items.shape[1], device=items.device)
        back = (at[:, None] - at[None, :])[None]  # (1, T, T)
        return hidden, self._read_out(hidden, items, known, behavior, back)

    def forward(
        self, items: Tensor, known: Tensor, platform: Tensor, behavior: Tensor, numeric: Tensor, times: Tensor, seconds: Tensor, lengths: Tensor
    ) -> Tensor:
        """Projected items (B, T, E), the rest as encoder.features.model_inputs makes it -> (B, E), L2-normalised, zero where nothing is known."""
        x = self.tokens(items, platform, behavior, numeric, times)
        hidden = self.norm(self.body(x, seconds, lengths, True))
        back = lengths[:, None, None] - 1 - torch.arange(items.shape[1], device=items.device)  # (B, 1, T)
        return self._read_out(hidden, items, known, behavior, back)[:, 0]

    def _read_out(self, hidden: Tensor, items: Tensor, known: Tensor, behavior: Tensor, back: Tensor) -> Tensor:
        """(B, Q, C), (B, T, E), (B, T), (B, T), events between query and key (b, Q, T) -> (B, Q, E)."""
        seen = (back >= 0).to(items.dtype) * known[:, None, :]  # (B, Q, T)
        some = (seen.sum(2, keepdim=True) > 0).to(items.dtype)
        out = self.out(hidden).to(items.dtype)
        if self.config.start_at_mean:
            weight = torch.exp2(-back.clamp(min=0) * torch.exp(-self.log_half_life)) * self.worth[behavior][:, None, :] * seen
            out = out + normalised(weight @ items)
        return normalised(out * some)


def last_of(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C), (B,) -> (B, C) at each window's last event."""
    return x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]


def normalised(x: Tensor) -> Tensor:
    """(..., E) -> length 1; zero stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)


def untouched(model: SequenceEncoder) -> list[str]:
    """Names of parameters that weight decay leaves alone: norms, biases, scalars, embeddings."""
    tables = {n for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    return [n for n, p in model.named_parameters() if p.ndim < 2 or n.rpartition(".")[0] in tables]


assert len(BEHAVIORS) < MASK
