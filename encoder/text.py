"""A Hugging Face text model as a function of texts: mean-pooled over tokens. Needs torch and transformers (extra `train`); knows no whitening.

Shape letters: n texts, H hidden dims of the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

BATCH = 64  # texts that the model sees at once; more are no faster on a CPU
MAX_TOKENS = 128


class TextModel:
    """A model (name or folder) and its tokenizer. Raises OSError or ValueError where there is none."""

    def __init__(self, source: str, max_tokens: int = MAX_TOKENS, bf16: bool = False, device: str = "cpu") -> None:
        self.source, self.bf16, self.device = source, bf16, torch.device(device)
        with quiet():
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
            self.body: Any = AutoModel.from_pretrained(source).eval().to(self.device)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.hidden = int(self.body.config.hidden_size)
        longest = getattr(self.body.config, "max_position_embeddings", None) or max_tokens
        self.max_tokens = min(max_tokens, int(longest), self.tokenizer.model_max_length)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """n texts -> their token ids, cut to max_tokens."""
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        return found

    def pool(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """n texts' token ids -> (n, H) float32, the mean over tokens; zero for a text without any. Texts of like length run together."""
        out, rows = list[Tensor](), list[np.ndarray]()
        for some in alike(ids):
            rows.append(some)
            out.append(self._mean([ids[i] for i in some]))
        back = torch.from_numpy(np.argsort(np.concatenate(rows))).to(self.device)
        return torch.cat(out)[back]

    def embed(self, texts: Sequence[str], tick: Callable[[int], None] = lambda n: None) -> np.ndarray:
        """n texts -> (n, H) float32; `tick` is told how many are done."""
        out, ids = np.zeros((len(texts), self.hidden), np.float32), self.ids(texts)
        with torch.inference_mode():
            for some in alike(ids):
                out[some] = self._mean([ids[i] for i in some]).cpu().numpy()
                tick(len(some))
        return out

    def _mean(self, ids: Sequence[Sequence[int]]) -> Tensor:
        longest = max(len(i) for i in ids)
        if not longest:
            return torch.zeros(len(ids), self.hidden, device=self.device)
        tokens = torch.full((len(ids), longest), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(tokens)
        for row, i in enumerate(ids):
            tokens[row, : len(i)], mask[row, : len(i)] = torch.tensor(i), 1
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = self.body(input_ids=tokens, attention_mask=mask).last_hidden_state  # (n, longest, H)
        weight = mask[..., None].float()
        return (hidden.float() * weight).sum(1) / weight.sum(1).clamp(min=1)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer, as from_pretrained reads them."""
        self.body.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the loader's bars and reports of weights that nobody uses."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def alike(ids: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Indices of at most BATCH texts at a time, of like length together: padding costs as much as text."""
    order = np.argsort([len(i) for i in ids], kind="stable")
    for a in range(0, len(order), BATCH):
        yield order[a : a + BATCH]
