"""SASRec with full softmax: the baseline of the literature, on the encoder's own split. It reads item IDs alone.

The model is that of Self-Attentive Sequential Recommendation (arXiv 1808.09781): learned positions, causal pre-LN self-attention, a point-wise
feed-forward layer as wide as the model, and the input's item embeddings as the output's. Its loss is cross-entropy over the whole catalogue, as in
SASRec+ of Turning Dross Into Gold Loss (arXiv 2309.07602), whose defaults are ours (github.com/antklen/sasrec-bert4rec-recsys23): the original's
one sampled negative makes it far weaker (gSASRec, arXiv 2308.07192).

Shape letters: B users, T events, D dims, N rows of the catalogue, n positions with a target.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.features import UNKNOWN, padded
from training.evaluate import Score, rank
from training.log import EventLog, spans
from training.metrics import METRICS
from training.scorers import newest
from training.splits import VALIDATION_CASES, Cases, DataError, Split

log = logging.getLogger("currents.training")
LOGITS = 1 << 22
"""At most this many logits (16 MiB) are there at a time, however large the catalogue is."""


class SASRec(nn.Module):
    """Items (B, T), UNKNOWN in the padding at the end -> (B, T, D) what the next item is like."""

    def __init__(self, items: int, max_len: int, dims: int = 64, blocks: int = 2, heads: int = 1, dropout: float = 0.1):
        super().__init__()
        self.max_len = max_len
        self.item = nn.Embedding(items, dims, padding_idx=UNKNOWN)
        self.position = nn.Embedding(max_len, dims)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(dims, heads, dims, dropout, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(dims), enable_nested_tensor=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)  # the encoder's blocks begin as copies of one
        nn.init.zeros_(self.item.weight[UNKNOWN])

    def forward(self, items: Tensor) -> Tensor:
        """No event looks at one after it, and so none at the padding."""
        steps = items.shape[1]
        x = self.item(items) * self.item.embedding_dim**0.5 + self.position.weight[:steps]
        causal = nn.Transformer.generate_square_subsequent_mask(steps, device=items.device)
        out: Tensor = self.body(self.dropout(x), mask=causal, is_causal=True)
        return out


@dataclass(frozen=True)
class Trained:
    """The best model of a run."""

    model: SASRec
    history: list[dict[str, float]]
    """One row an epoch: mean loss and the validation metrics."""


def train(
    data: EventLog,
    split: Split,
    max_len: int,
    epochs: int = 100,
    *,
    dims: int = 64,
    blocks: int = 2,
    heads: int = 1,
    dropout: float = 0.1,
    lr: float = 1e-3,
    batch_users: int = 128,
    patience: int = 10,
    seed: int = 0,
    bf16: bool = False,
    note: Callable[[str], None] = log.info,
) -> Trained:
    """Train until validation NDCG@10 has not risen for `patience` epochs. Raises DataError where nobody has two training events."""
    users = np.flatnonzero(split.end - split.begin >= 2)
    if not len(users):
        raise DataError("no user has two training events")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    valid, history, best, best_epoch = split.valid.at_most(VALIDATION_CASES, seed), list[dict[str, float]](), -1.0, 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SASRec(data.catalogue.size, max_len, dims, blocks, heads, dropout).to(device)
        state = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for epoch in range(epochs):
            order = np.random.default_rng((seed, epoch)).permutation(users)
            model.train()
            losses = []
            for a in range(0, len(order), batch_users):
                items, targets = (torch.as_tensor(x, device=device) for x in examples(data, split, order[a : a + batch_users], max_len))
                if not (targets != UNKNOWN).any():
                    continue
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = full_softmax(model(items), targets, model.item.weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            found = rank(scores(model), data, valid).rank
            row = {"loss": float(np.mean(losses)), **{f"valid_{m}": float(METRICS[m](found).mean()) for m in ("ndcg@10", "hr@10")}}
            history.append(row)
            note(f"SASRec, epoch {epoch + 1}/{epochs}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items()))
            if row["valid_ndcg@10"] > best:
                best, best_epoch, state = row["valid_ndcg@10"], epoch, copy.deepcopy(model.state_dict())
            elif epoch - best_epoch >= patience:
                break
    model.load_state_dict(state)
    return Trained(model.eval(), history)


def examples(data: EventLog, split: Split, users: np.ndarray, max_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The newest training events of some users -> (B, T) items and the (B, T) item that comes next, UNKNOWN where there is none to predict.

    A target is strictly later than its event, so that no input is of the time of what it is to predict.
    """
    end = split.end[users]
    begin = np.maximum(split.begin[users], end - max_len - 1)
    at = spans(begin, end)
    features = padded(data.rows[at], data.items[at], end - begin)
    later = features.mask[:, 1:] & (features.rows["ts_ms"][:, 1:] > features.rows["ts_ms"][:, :-1])
    return features.items[:, :-1].astype(np.int64), np.where(later, features.items[:, 1:], UNKNOWN).astype(np.int64)


def full_softmax(hidden: Tensor, targets: Tensor, items: Tensor) -> Tensor:
    """(B, T, D), (B, T) targets, (N, D) item embeddings -> mean cross-entropy of the n positions that have a target, over all items but UNKNOWN."""
    there = targets != UNKNOWN
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=max(1, LOGITS // len(items)))
    return F.linear_cross_entropy(hidden[there], items[1:], targets[there] - 1, options=options)


def scores(model: SASRec) -> Score:
    """The model as evaluation sees it."""
    device = model.item.weight.device

    def score(data: EventLog, some: Cases) -> np.ndarray:
        features = newest(data, some, model.max_len)
        model.eval()
        with torch.inference_mode():
            hidden = model(torch.as_tensor(features.items, device=device).long())
            last = hidden[torch.arange(len(some), device=device), torch.as_tensor(features.lengths - 1, device=device)]
            return np.asarray((last @ model.item.weight.T).float().cpu())

    return score
