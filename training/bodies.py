"""Encoders around a Hugging Face transformer: started from a checkpoint's weights, or with a learned prefix."""

from dataclasses import replace

from transformers import AutoConfig, AutoModel

from encoder.config import EncoderConfig
from encoder.model import SequenceEncoder
from encoder.pretrained_body import PretrainedBody


def with_pretrained_body(config: EncoderConfig, source: str) -> SequenceEncoder:
    """An encoder whose body starts from a checkpoint's weights (a name or a folder). Raises OSError or ValueError where there is none."""
    hub = AutoConfig.from_pretrained(source)
    if hub.model_type not in ("bert", "gpt2"):
        raise ValueError(f"training.body = {source!r}: want a BERT or GPT-2 model, got {hub.model_type}")
    if hub.model_type == "bert":
        hub.is_decoder = True  # causal attention
    if hub.max_position_embeddings < config.max_len:
        raise ValueError(f"training.body = {source!r}: takes {hub.max_position_embeddings} positions, max_len is {config.max_len}")
    encoder = SequenceEncoder(replace(config, body=hub.to_diff_dict() | {"model_type": hub.model_type}))
    loaded = AutoModel.from_pretrained(source, config=hub, attn_implementation="eager").state_dict()
    body = encoder.body
    assert isinstance(body, PretrainedBody)
    missing, _ = body.body.load_state_dict(loaded, strict=False)
    if missing:
        raise ValueError(f"training.body = {source!r}: has no {missing[0]}")
    return encoder


def with_prefix(encoder: SequenceEncoder, length: int) -> SequenceEncoder:
    """Prefix tuning (arXiv 2101.00190): the encoder with a learned prefix to its transformer, which is frozen itself. Raises ValueError."""
    body = encoder.body
    if not isinstance(body, PretrainedBody) or not body.takes_prefix:
        raise ValueError("training.adapter = 'prefix' needs a GPT body (training.body)")
    body.body.requires_grad_(False)
    body.add_prefix(length)
    # The config is what a saved encoder is built from again; the mixin keeps the one that it saw first.
    encoder.config = encoder._hub_mixin_config = replace(encoder.config, body={**encoder.config.body, "prefix_length": length})
    return encoder
