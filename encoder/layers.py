"""The layers of the sequence encoder: items into the interest space, causal attention over events.

Shape letters: B users, T events, D dims of a tower's vector, E dims of the interest space, C channels, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.config import EncoderConfig

EXACT, DISTANCES, LONGEST = 64, 96, 512
"""Distances up to EXACT have a bias of their own, longer ones share DISTANCES - EXACT logarithmic buckets up to LONGEST."""
LENGTH = 0.3
"""Of an untrained item before it is normalised: the shorter, the faster a step turns it (docs/log.md has the figures)."""
TIME_BUCKETS = 32
"""One a factor of two: 1 s to 136 years."""


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


class Linear(nn.Linear):
    """A linear layer that takes its rows as one matrix: ONNX Runtime then adds the bias while it multiplies, not in a pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


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
            table = self.time.weight
            lines = torch.cat([table[:-1], table[1:] - table[:-1]], 1)  # (TIME_BUCKETS, 2 H)
            # Heads in front before the share is multiplied in: broadcast over a last axis of two or four heads, it took five times as long.
            start, slope = F.embedding(low.long(), lines).permute(0, 3, 1, 2).chunk(2, 1)
            out = out + start + slope * (x - low)[:, None]
        return out.masked_fill((back < 0)[:, None], -1e9)


class Attention(nn.Module):
    """Causal self-attention with a given bias."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.heads, self.head = channels // head, head
        self.query, self.key, self.value, self.out = (Linear(channels, channels) for _ in range(4))

    def forward(self, asking: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """(B, Q, C), (B, T, C), (B, H, Q, T) -> (B, Q, C). Where `asking` is not `x` itself, Q is 1."""
        if asking is not x and type(self.key) is type(self.value) is Linear:  # an adapter's layer is more than its weight
            return self._one(asking, x, bias)
        q, k, v = self._split(self.query(asking) * self.head**-0.5), self._split(self.key(x)), self._split(self.value(x))  # (B, H, ·, C/H)
        scores = q @ k.transpose(2, 3)
        scores = scores + bias.to(scores.dtype)
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # it would widen (B, H, Q, T) to float32 and back
                mixed = scores.softmax(-1) @ v
        else:
            mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _one(self, asking: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """For one query the maps of keys and values are applied to it and to what it gets, not to T events (MLA's absorption, arXiv 2405.04434).

        The keys' bias is the same for all events: softmax does not see it.
        """
        shape = self.heads, self.head
        q = (self.query(asking) * self.head**-0.5)[:, 0].unflatten(1, shape)  # (B, H, C/H)
        keys, values = self.key.weight.unflatten(0, shape), self.value.weight.unflatten(0, shape)  # (H, C/H, C)
        scores = (q.transpose(0, 1) @ keys).transpose(0, 1) @ x.transpose(1, 2) + bias[:, :, 0]  # (B, H, T)
        seen = scores.softmax(-1) @ x  # (B, H, C)
        mixed = (seen.transpose(0, 1) @ values.transpose(1, 2)).transpose(0, 1).flatten(1) + self.value.bias
        return self.out(mixed)[:, None]

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
        self.up, self.gate, self.down = Linear(c, config.inner), Linear(c, config.inner), Linear(config.inner, c)
        self.open1, self.open2 = Linear(c, c), Linear(c, c)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, asking: Tensor, back: Tensor, elapsed: Tensor) -> Tensor:
        """All events (B, T, C), those that ask (B, Q, C), Bias's inputs -> (B, Q, C)."""
        seen = self.norm1(x)
        mixed = self.attention(seen if asking is x else self.norm1(asking), seen, self.bias(back, elapsed))
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


def last_of(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C), (B,) -> (B, C) at each window's last event."""
    return x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]


def normalised(x: Tensor) -> Tensor:
    """(..., E) -> length 1; zero stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
