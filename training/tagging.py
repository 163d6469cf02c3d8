"""The behavior task as evaluation: tag every event of a sequence, its own behavior hidden from the model, and report per platform."""

from typing import Any

import numpy as np
import torch

from encoder.features import model_inputs
from encoder.model import SequenceEncoder
from schemas.events import BEHAVIORS
from training.batches import hide
from training.log import EventLog
from training.scorers import newest, projected, tensors
from training.splits import Cases

PASSES = 3  # every third event is hidden at once, so that its neighbours' behaviors are seen
CHUNK = 256


def tags(model: SequenceEncoder, log: EventLog, residual: np.ndarray, some: Cases) -> dict[str, dict[str, Any]]:
    """Platform -> behavior -> precision, recall, f1-score, support, over the events of the cases' inputs; `residual` as in model_scores."""
    from sklearn.metrics import classification_report

    model.eval()
    items = projected(model, log, residual)
    true, guessed, platform = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for a in range(0, len(some), CHUNK):
        features = newest(log, some.take(np.arange(a, min(a + CHUNK, len(some)))), model.config.max_len)
        inputs, mask = model_inputs(features), features.mask
        guess = np.zeros_like(inputs["behavior"])
        for n in range(PASSES):
            hidden = np.zeros_like(mask)
            hidden[:, n::PASSES] = True
            with torch.inference_mode():
                states = model.states(**tensors(hide(inputs, hidden), items))[0]
                logits = model.behavior_head(states)[..., : len(BEHAVIORS)]
            guess[hidden] = np.asarray(logits.argmax(-1).cpu())[hidden]
        true.append(inputs["behavior"][mask])
        guessed.append(guess[mask])
        platform.append(inputs["platform"][mask])
    y, found, of = np.concatenate(true), np.concatenate(guessed), np.concatenate(platform)
    out = {}
    for code in np.unique(of).tolist():
        here = of == code
        labels = np.unique(y[here])
        names = [BEHAVIORS[b] for b in labels]
        whole = classification_report(y[here], found[here], labels=labels, target_names=names, output_dict=True, zero_division=0)
        out[log.catalogue.platforms[code]] = {k: v for k, v in whole.items() if isinstance(v, dict)}
    return out
