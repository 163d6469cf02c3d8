"""The shape of a sequence encoder. Knows no torch.

Shape letters, here and in encoder.layers and encoder.model: B users, T events, D dims of a tower's vector, E dims of the interest space,
C channels, H heads.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from schemas.events import BEHAVIORS

PLATFORMS, BEHAVIOR_SLOTS = 64, 16
MASK = BEHAVIOR_SLOTS - 1
"""Behavior of an event whose own is hidden from the model."""

assert len(BEHAVIORS) < MASK


@dataclass(frozen=True, kw_only=True)
class Switches:
    """The part of an encoder's shape that a training recipe sets: `[training]` has a setting of each name, with the default given here."""

    dims: int = 128
    """E."""
    max_len: int = 64
    """How many of the newest events the encoder looks at."""
    dropout: float = 0.2
    residual_dropout: float = 0.5
    """Share of items whose residual is hidden in a training step, so that the content alone stays good."""
    content: bool = True
    """False: IDs alone."""
    platform: bool = True
    """Platform as an input."""
    behavior: bool = True
    """Behavior as an input."""
    time: bool = True
    """Time of day and gaps as inputs, and the bias on elapsed time. Off for logs that have an order only."""
    distance: bool = True
    """The bias on the distance in events."""
    start_at_mean: bool = True
    """Add the output to the decayed mean."""


@dataclass(frozen=True)
class EncoderConfig(Switches):
    """Shape of an encoder: everything that its weights need to be read again."""

    item_dims: int
    """D."""
    channels: int = 128
    layers: int = 2
    inner: int = 352
    head: int = 32
    residuals: int = 0
    """Items with an ID residual."""
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
