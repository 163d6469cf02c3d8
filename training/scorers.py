"""Scoring functions for evaluation, from cases to scores of the whole catalogue: encoders and baselines."""

from collections.abc import Callable

import numpy as np
import torch

from encoder.base import Encoder
from encoder.baseline import Baseline
from encoder.features import UNKNOWN, Features, fitted, model_inputs, padded
from encoder.model import SequenceEncoder
from schemas.windows import Policy
from training.evaluate import CHUNK, Score
from training.log import EventLog, spans, windows
from training.splits import Cases

WEEK_MS = 7 * 86_400_000


def popularity(counts: np.ndarray) -> Score:
    """The same (N,) counts for everybody."""
    return lambda log, some: np.broadcast_to(counts.astype(np.float32), (len(some), len(counts)))


def recent_popularity(log: EventLog, span_ms: int = WEEK_MS) -> Score:
    """How often each item was acted on, by anybody, in the span before the target."""
    order = np.argsort(log.rows["ts_ms"], kind="stable")
    ts, items = log.rows["ts_ms"][order], log.items[order]

    def score(log: EventLog, some: Cases) -> np.ndarray:
        at = log.rows["ts_ms"][some.target]
        low, high = np.searchsorted(ts, at - span_ms), np.searchsorted(ts, at)
        n = log.catalogue.size
        return np.stack([np.bincount(items[a:b], minlength=n) for a, b in zip(low, high, strict=True)]).astype(np.float32)

    return score


def newest(log: EventLog, some: Cases, max_len: int) -> Features:
    """The newest max_len events of each case's input."""
    begin = np.maximum(some.begin, some.end - max_len)
    at = spans(begin, some.end)
    return padded(log.rows[at], log.items[at], some.end - begin)


def aged(model: Score, events: int = 0, until: Callable[[np.ndarray], np.ndarray] | None = None) -> Score:
    """A model that sees older inputs: without the last `events`, and with those only that are before `until` of the target's time, ms (n,).

    At least one event stays: a profile that is older than its user's history is no profile.
    """

    def score(log: EventLog, some: Cases) -> np.ndarray:
        end = some.end - events
        if until is not None:
            limit = until(log.rows["ts_ms"][some.target])
            end = np.minimum(end, [a + np.searchsorted(log.rows["ts_ms"][a:b], t) for a, b, t in zip(some.begin, some.end, limit, strict=True)])
        return model(log, Cases(some.begin, np.maximum(end, some.begin + 1), some.target))

    return score


def seen(log: EventLog, some: Cases, max_len: int, policy: Policy | None) -> Features:
    """The newest max_len events of each case's input; under a policy, what a worker's encoder sees of its window."""
    if policy is None:
        return newest(log, some, max_len)
    return fitted(windows(log, some.begin, some.end, policy), max_len, policy)


def decayed_mean(max_len: int = 64, policy: Policy | None = None) -> Score:
    """The day-0 encoder on the tower's vectors; `policy`: of the windows that it reads."""

    def score(log: EventLog, some: Cases) -> np.ndarray:
        table = log.catalogue.table
        encoder = Baseline(table.dims, "", max_len)
        out: np.ndarray = encoder.encode(seen(log, some, max_len, policy), table) @ table.vectors[: log.catalogue.size].T
        return out

    return score


Users = Callable[[EventLog, Cases], np.ndarray]
"""(log, b cases) -> (b, E) interest vectors."""


def mixed(users: Users, items: np.ndarray) -> Score:
    """Interest vectors and item vectors (N, E), of one encoder or of two."""
    return lambda log, some: np.asarray(users(log, some) @ items.T)


def remembered(users: Users, log: EventLog, some: Cases) -> Users:
    """The same for these cases, whose targets differ, each encoded once."""
    vectors = np.concatenate([users(log, some.take(np.arange(a, min(a + CHUNK, len(some))))) for a in range(0, len(some), CHUNK)])
    order = np.argsort(some.target)
    return lambda log, part: vectors[order[np.searchsorted(some.target, part.target, sorter=order)]]


def served_users(encoder: Encoder, policy: Policy | None = None) -> Users:
    """Interest vectors of any encoder as a worker runs it; `policy`: of the windows that it reads."""
    return lambda log, some: encoder.encode(seen(log, some, encoder.max_len, policy), log.catalogue.table)


def served_items(encoder: Encoder, log: EventLog) -> np.ndarray:
    """(N, E) the whole catalogue by any encoder; row UNKNOWN is zero."""
    table = log.catalogue.table
    items = encoder.project(table.vectors[: log.catalogue.size], table.keys[: log.catalogue.size])
    items[UNKNOWN] = 0
    return items


def served(encoder: Encoder, log: EventLog, policy: Policy | None = None) -> Score:
    """Any encoder as a worker runs it."""
    return mixed(served_users(encoder, policy), served_items(encoder, log))


def model_users(model: SequenceEncoder, items: torch.Tensor, policy: Policy | None = None) -> Users:
    """Interest vectors of a torch encoder, from its projected items (N, E)."""

    def users(log: EventLog, some: Cases) -> np.ndarray:
        inputs = tensors(model_inputs(seen(log, some, model.config.max_len, policy)), items)
        with torch.inference_mode():
            return np.asarray(model(**inputs).float().cpu())

    return users


def model_scores(model: SequenceEncoder, log: EventLog, residual: np.ndarray, policy: Policy | None = None) -> Score:
    """A torch encoder; `residual` (N,) rows of its ID residuals; `policy`: of the windows that it reads."""
    model.eval()
    items = projected(model, log, residual)

    def score(log: EventLog, some: Cases) -> np.ndarray:
        inputs = tensors(model_inputs(seen(log, some, model.config.max_len, policy)), items)
        with torch.inference_mode():
            return np.asarray((model(**inputs) @ items.T).float().cpu())

    return score


def tensors(inputs: dict[str, np.ndarray], items: torch.Tensor) -> dict[str, torch.Tensor]:
    """Model inputs on the device of the projected items (N, E), item rows replaced by their vectors."""
    found = {k: torch.as_tensor(v, device=items.device) for k, v in inputs.items()}
    return {**found, "items": items[found["items"].long()]}


def projected(model: SequenceEncoder, log: EventLog, residual: np.ndarray) -> torch.Tensor:
    """(N, E) the whole catalogue in the interest space; row UNKNOWN is zero."""
    device = next(model.parameters()).device
    vectors = torch.as_tensor(log.catalogue.table.vectors[: log.catalogue.size], device=device)
    with torch.inference_mode():
        items = model.project(vectors, torch.as_tensor(residual, device=device))
        return torch.cat([torch.zeros_like(items[:1]), items[1:]])
