"""Smaller variants of the serving encoder: feed-forward channels that matter least are taken out, so that graph and arithmetic really shrink.

What a channel of a SwiGLU does to the output is a product: down[:, j] · (silu(gate[j] · z) · (up[j] · z)). Its importance is the product of the
norms of the three: the magnitude criterion of Li, Kadav, Durdanovic, Samet and Graf, "Pruning filters for efficient ConvNets" (arXiv 1608.08710), for
channels that are coupled (as LLM-Pruner groups them, arXiv 2305.11627). A short fine-tuning follows, which the retraining does as always.
"""

from dataclasses import replace

from encoder.bundle import BundleError
from encoder.layers import OwnBody
from encoder.model import SequenceEncoder

STEP = 8  # channels: matrices whose sides are multiples of it are as fast as they look


def pruned(model: SequenceEncoder, share: float) -> SequenceEncoder:
    """The encoder without `share` of every block's feed-forward channels, to a multiple of STEP. Raises BundleError for another body than our own."""
    if not isinstance(model.body, OwnBody):
        raise BundleError("compress: only our own body can be pruned, this release's is a Hugging Face transformer")
    inner = max(STEP, round(model.config.inner * (1 - share) / STEP) * STEP)
    small = SequenceEncoder(replace(model.config, inner=inner))
    state = model.state_dict()
    for n, block in enumerate(model.body.blocks):
        up, gate, down = block.up, block.gate, block.down
        importance = up.weight.norm(dim=1) * gate.weight.norm(dim=1) * down.weight.norm(dim=0)
        kept = importance.topk(min(inner, len(importance))).indices.sort().values
        for name in ("up", "gate"):
            for part in ("weight", "bias"):
                state[f"body.blocks.{n}.{name}.{part}"] = state[f"body.blocks.{n}.{name}.{part}"][kept]
        state[f"body.blocks.{n}.down.weight"] = state[f"body.blocks.{n}.down.weight"][:, kept]
    small.load_state_dict({k: v.clone() for k, v in state.items()})
    return small
