"""The behavior task as evaluation: tag every event of a sequence, its own behavior hidden from the model, and report per platform."""

from typing import Any

import numpy as np
import torch

from encoder.features import model_inputs
from encoder.model import MASK, SequenceEncoder
from schemas.events import BEHAVIORS
from training.log import EventLog
from training.scorers import newest, projected
from training.splits import Cases

PASSES = 3  # every third event is hidden at once, so that its neighbours' behaviors are seen
CHUNK = 256


def tags(model: SequenceEncoder, log: EventLog, some: Cases) -> dict[str, dict[str, Any]]:
    """Platform -> behavior -> precision, recall, f1-score, support, over the events of the cases' inputs."""
    from sklearn.metrics import classification_report

    model.eval()
    items = projected(model, log, np.zeros(log.catalogue.size, np.int64))
    true, guessed, platform = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for a in range(0, len(some), CHUNK):
        features = newest(log, some.take(np.arange(a, min(a + CHUNK, len(some)))), model.config.max_len)
        inputs = {k: torch.from_numpy(np.asarray(v)) for k, v in model_inputs(features).items()}
        inputs["items"] = items[inputs["items"].long()]
        behavior, numeric = inputs["behavior"], inputs["numeric"]
        guess = torch.zeros_like(behavior)
        for n in range(PASSES):
            hidden = torch.zeros_like(behavior, dtype=torch.bool)
            hidden[:, n::PASSES] = True
            shown = numeric.clone()
            shown[hidden] *= torch.tensor([0.0, 1.0, 0.0, 1.0])
            with torch.inference_mode():
                states = model.states(**{**inputs, "behavior": behavior.masked_fill(hidden, MASK), "numeric": shown})[0]
                guess[hidden] = model.behavior_head(states)[..., : len(BEHAVIORS)].argmax(-1)[hidden]
        mask = features.mask
        true.append(behavior.numpy()[mask])
        guessed.append(guess.numpy()[mask])
        platform.append(inputs["platform"].numpy()[mask])
    y, found, of = np.concatenate(true), np.concatenate(guessed), np.concatenate(platform)
    out = {}
    for code in np.unique(of).tolist():
        here = of == code
        labels = np.unique(y[here])
        names = [BEHAVIORS[b] for b in labels]
        whole = classification_report(y[here], found[here], labels=labels, target_names=names, output_dict=True, zero_division=0)
        out[log.catalogue.platforms[code]] = {k: v for k, v in whole.items() if isinstance(v, dict)}
    return out
