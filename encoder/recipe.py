"""Hyper-parameters of training and rules of the release gate: `[training]` and `[gate]` of the settings. Defaults: docs/encoder.md."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from encoder.config import Switches

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]


class Recipe(BaseModel):
    """Hyper-parameters of training. Units in the names; shares are of 1. Those of `encoder.config.Switches` become a part of the weights' config."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    # What is trained
    preset: Literal["xs", "s", "l"] = "s"
    """Size of our own body: `xs`, `s`, `l`."""
    dims: Positive = Switches.dims
    """Dims of the interest space."""
    max_len: Positive = Switches.max_len
    """How many of the newest events the encoder looks at."""
    body: str = ""
    """Folder or name of a Hugging Face transformer (BERT or GPT family) as the body; empty: our own layers."""
    adapter: Literal["none", "lora", "adalora", "prefix"] = "none"
    """Train adapters in the body instead of its weights; `prefix` for a GPT body only."""
    adapter_rank: Positive = 8
    """Rank of LoRA, AdaLoRA's mean rank at the end, length of a prefix."""
    freeze: tuple[str, ...] = ()
    """Names of parameters that stay as they are, with * and ?: `body.*`."""
    start: str = ""
    """Bundle to go on from; empty: the untrained encoder, equal to the baseline."""
    content: bool = Switches.content
    """Read what items are; off: IDs alone."""
    platform: bool = Switches.platform
    """Platform as an input."""
    behavior: bool = Switches.behavior
    """Behavior as an input."""
    time: bool = Switches.time
    """Time of day, gaps, and the bias on elapsed time; off for logs that have an order only."""
    distance: bool = Switches.distance
    """Bias on the distance in events."""
    start_at_mean: bool = Switches.start_at_mean
    """Add the output to the decayed mean."""
    whiten: bool = True
    """Start the projection of items as the whitening of this catalogue's own vectors, where there are enough of them."""
    residuals: bool = True
    """An ID residual for items with at least `residual_min_count` training events."""
    residual_min_count: Positive = 5
    """Training events that an item needs for an ID residual."""
    residual_dropout: Share = Switches.residual_dropout
    """Share of items whose residual is hidden in a step, so that content alone stays good."""

    # From what
    split: Literal["time", "leave-one-out"] = "time"
    """Hold out by time, or each user's last two events."""
    test_share: Share = 0.1
    """Newest share of all events: the test."""
    valid_share: Share = 0.1
    """Shares of all events, the newest first: test, then validation. What comes before is trained on."""
    targets: Literal["next", "all-action"] = "next"
    """`all-action`: any action within `horizon_days` (PinnerFormer's dense all-action loss)."""
    horizon_days: Annotated[float, Field(gt=0)] = 14.0
    """Days ahead of `all-action`."""
    drop_event: Share = 0.1
    """Share of events dropped from a segment."""
    drop_platform: Share = 0.15
    """Share of segments that lose a whole platform."""
    unknown_platform: Share = 0.1
    """Share of events whose platform is hidden."""
    mask: Share = 0.3
    """Share of events whose behavior and value are hidden from the model and predicted."""

    # Losses
    negatives: Annotated[int, Field(ge=0)] = 2048
    """Sampled per platform and step, shared by its positions, with logQ correction; 0: the whole catalogue."""
    negatives_power: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Negatives are drawn from counts to this power; 0: uniformly."""
    logq: bool = True
    """Correct for how negatives are drawn."""
    platform_power: float = -0.5
    """A platform's positions weigh its number of events to this power."""
    platform_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """A further weight by platform's name; 1 where not given."""
    weight_behavior: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the behavior task: the hidden behavior of an event."""
    weight_class: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the class task: is the next event a strong action."""
    weight_value: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the value task: the hidden value of an event."""

    # How
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of matrices."""
    residual_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decay of ID residuals."""
    warmup: Share = 0.05
    """Share of all steps; then a cosine to a tenth."""
    epochs: Positive = 20
    """Most passes over the data."""
    patience: Positive = 10
    """Epochs without a better validation NDCG@10 before training stops."""
    batch_users: Positive = 4096
    """Most segments of a batch."""
    batch_events: Positive = 2048
    """A batch holds at most this many events, padding included. Few: the more steps an epoch, the better (docs/log.md has the figures)."""
    accumulate: Positive = 1
    """Batches per step."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Gradient norm."""
    dropout: Share = Switches.dropout
    """Dropout."""
    precision: Literal["no", "bf16"] = "bf16"
    """`bf16`: autocast."""
    ema: Share = 0.999
    """Decay of the averaged weights, which are what is kept."""
    seed: int = 0
    """Of everything random."""
    checkpoint_steps: Positive = 500
    """Steps between checkpoints; one at every epoch besides."""
    log_to: Literal["none", "tensorboard", "wandb"] = "tensorboard"
    """Where the course of training goes."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Of torch; 0: as many as there are cores."""


class TowerRecipe(BaseModel):
    """Hyper-parameters of `currents tower`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    mode: Literal["frozen", "lora", "full", "static"] = "lora"
    """`frozen`: the model as it is; `lora`, `full`: fine-tuned, through adapters or whole; `static`: distilled into one vector a token."""
    model: str = ""
    """Hugging Face text model: a name, its folder, or a tower's folder; empty: all-MiniLM-L6-v2."""
    dims: Positive = 192
    """Dims of the tower; whitening wants twice as many texts."""
    max_tokens: Positive = 64
    """Tokens that are read of a text, in training and by the tower."""
    precision: Literal["no", "bf16"] = "bf16"
    """`bf16`: autocast, in training and by the tower."""
    steps: Positive = 300
    """Steps of training."""
    batch: Annotated[int, Field(ge=2)] = 128
    """Pairs of a step."""
    ahead: Positive = 3
    """An item is paired with items that its user acted on within so many events after it."""
    symmetric: bool = True
    """Predict the earlier item from the later one too."""
    logq: bool = True
    """Correct for popular items being negatives more often."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Cosines are divided by it."""
    rank: Positive = 16
    """Rank of LoRA."""
    lr: Annotated[float, Field(ge=0)] = 0.0
    """Peak learning rate; 0: 5e-4 for `lora`, 3e-5 for `full`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of matrices."""
    warmup: Share = 0.1
    """Share of the steps; then a cosine to zero."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Gradient norm."""
    seed: int = 0
    """Of everything random."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Of torch; 0: as many as there are cores."""


Compress = Literal["", "int8", "pruned"]
"""A variant of the serving release instead of a further training: its matrices in int8, or fewer of its channels and a short fine-tuning."""


class GateRules(BaseModel):
    """Conditions that a new release must meet, compared with the serving one on the newest events; and those for keeping the space's id."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    metric: Literal["ndcg@10", "hr@10"] = "ndcg@10"
    """What is compared."""
    gain: float = 0.0
    """Over all cases it must be better by more than this share of the serving release's metric."""
    compressed_loss: Share = 0.01
    """Of a compressed variant instead: over all cases it may be worse by at most this share."""
    compressed_gain: Share = 0.1
    """And it must be smaller, or faster, by at least this share."""
    platform_loss: Share = 0.05
    """No platform may be worse by more than this share of its metric."""
    cold_loss: Share = 0.0
    """On items without training events it must not be shown worse (whole 95 % interval) by more than this share."""
    min_cases: Annotated[int, Field(ge=0)] = 50
    """Test cases that every declared platform must have; 0: a platform may have none."""
    max_cases: Positive = 20_000
    """Most test cases: every event of the newest part is one, or so many of them at random."""
    size_mb: Annotated[float, Field(gt=0)] = 512.0
    """Most MB of the bundle's files."""
    latency_ms: Annotated[float, Field(gt=0)] = 250.0
    """Most ms for 64 full windows on one thread of ONNX Runtime, the least of several runs."""
    parity: Annotated[float, Field(gt=0)] = 1e-4
    """Largest difference of any output between torch and ONNX."""
    space_cosine: Share = 0.9
    """Least mean cosine of turned and serving vectors of anchor items for the same space_id."""
    space_loss: Share = 0.01
    """Largest share of the metric that a reader of both releases' vectors may lose for the same space_id."""
    anchors: Positive = 20_000
    """Most anchor items, those with the most events first; 10,000 or more are advised."""
