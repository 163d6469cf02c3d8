"""The sequence encoder in torch: for training, for export, and for a worker with a GPU; a CPU worker runs its ONNX graph and never imports this.

Shape letters: B users, T events, D dims of a tower's vector, E dims of the interest space, C channels, H heads.

Design: a LiGR body (arXiv 2502.03417: pre-LN, SwiGLU, sigmoid gates on both residuals) on content vectors, with HSTU's learned bias on distance
and on elapsed time (arXiv 2402.17152) and PinnerFormer's event inputs (arXiv 2205.04507). The output is added to the decayed mean of the item
vectors by a last layer that starts at zero, so that training starts at the baseline.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from encoder.baseline import HALF_LIFE
from encoder.bundle import RESIDUALS, BundleError, read_residuals
from encoder.config import BEHAVIOR_SLOTS, PLATFORMS, EncoderConfig
from encoder.features import NUMERIC, TIMES
from encoder.layers import ItemProjector, Linear, OwnBody, normalised
from schemas.events import BEHAVIOR_CODE


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
        self.item, self.numeric, self.time = Linear(config.dims, c), Linear(NUMERIC, c), Linear(TIMES, c)
        self.platform, self.behavior = nn.Embedding(PLATFORMS, c), nn.Embedding(BEHAVIOR_SLOTS, c)
        for table in (self.platform, self.behavior):
            nn.init.normal_(table.weight, std=0.02)
        if config.body:
            from encoder.pretrained_body import PretrainedBody

            self.body: nn.Module = PretrainedBody(config)
        else:
            self.body = OwnBody(config)
        self.drop = nn.Dropout(config.dropout)
        self.norm, self.out = nn.LayerNorm(c), Linear(c, config.dims)
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


def untouched(model: SequenceEncoder) -> list[str]:
    """Names of parameters that weight decay leaves alone: norms, biases, scalars, embeddings."""
    tables = {n for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    return [n for n, p in model.named_parameters() if p.ndim < 2 or n.rpartition(".")[0] in tables]
