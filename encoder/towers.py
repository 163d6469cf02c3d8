"""Item towers: content -> item vectors. The static one is shipped and needs no torch; any Hugging Face text model is a setting."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from model2vec import StaticModel

from encoder.baseline import l2

MANIFEST, BIAS, WHITENING = "tower.json", "bias.npy", "whitening.npz"
STATIC = "static"
BATCH = 64  # texts a transformer sees at once


class TowerError(ValueError):
    """A tower that cannot be used: says which, why and what to do."""


class Tower(Protocol):
    """Content in, vectors out."""

    space_id: str
    """Changes with anything that changes vectors."""
    dims: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> (n, dims) float32, whitened, L2-normalised; a zero row for a text without a known token."""
        ...


def load_tower(name: str) -> Tower:
    """`static`, a folder written by training.distill or training.whiten. Raises TowerError."""
    if name == STATIC:
        return StaticTower(Path(str(files("encoder") / "data" / "static")))
    folder = Path(name)
    if (folder / WHITENING).exists():
        return TransformerTower(folder)
    if (folder / MANIFEST).exists():
        return StaticTower(folder)
    raise TowerError(
        f"encoding.tower = {name!r}: want 'static' or the folder of a whitened tower; unwhitened vectors compare badly. "
        f"Make one from any Hugging Face text model: python -m training.whiten {name} --corpus FILE --out FOLDER"
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """A tower's manifest. Raises TowerError."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise TowerError(f"{folder / MANIFEST}: {error}") from None
    if not isinstance(manifest, dict) or not {"space_id", "dims"} <= manifest.keys():
        raise TowerError(f"{folder / MANIFEST}: want space_id and dims")
    return manifest


class StaticTower:
    """The mean of static token vectors, whitening folded in (model2vec)."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.space_id, self.dims = manifest["space_id"], int(manifest["dims"])
        try:
            self._model, self._bias = StaticModel.from_pretrained(folder), np.load(folder / BIAS)
        except (OSError, ValueError) as error:
            raise TowerError(f"{folder}: {error}") from None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> (n, dims) float32, whitened, L2-normalised; a zero row for a text without a known token."""
        if not texts:
            return np.zeros((0, self.dims), np.float32)
        raw = np.asarray(self._model.encode(list(texts), use_multiprocessing=False), np.float32)
        return l2(np.where(raw.any(1, keepdims=True), raw + self._bias, 0))


class TransformerTower:
    """A Hugging Face text model, mean-pooled over tokens, whitened by a fitted matrix. Imports torch and transformers late."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.space_id, self.dims = manifest["space_id"], int(manifest["dims"])
        with np.load(folder / WHITENING) as stored:
            self._mean, self._matrix = stored["mean"], stored["matrix"]
        self._pooled = mean_pooler(manifest["model"])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> (n, dims) float32, whitened, L2-normalised; a zero row for an empty text."""
        if not texts:
            return np.zeros((0, self.dims), np.float32)
        out = l2((self._pooled(texts) - self._mean) @ self._matrix).astype(np.float32)
        out[[not t.strip() for t in texts]] = 0
        return out


def mean_pooler(model: str) -> Callable[[Sequence[str]], np.ndarray]:
    """A Hugging Face model (name or folder) as a function: n texts -> (n, hidden) float32. Raises TowerError naming the extra that is missing."""
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise TowerError(f'tower {model!r} needs torch and transformers: pip install "currents[train]"') from None
    try:
        tokenizer, body = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    except (OSError, ValueError) as error:
        raise TowerError(f"tower {model!r}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def pooled(texts: Sequence[str]) -> np.ndarray:
        out = []
        with torch.inference_mode():
            for a in range(0, len(texts), BATCH):
                batch = tokenizer(list(texts[a : a + BATCH]), padding=True, truncation=True, max_length=128, return_tensors="pt")
                hidden = body(**batch).last_hidden_state  # (n, tokens, hidden)
                mask = batch["attention_mask"][..., None]
                out.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).float().numpy())
        return np.concatenate(out)

    return pooled


def space_of(kind: str, dims: int, *parts: bytes) -> str:
    """A space_id that changes with the bytes it is made of."""
    return f"{kind}-{dims}-{hashlib.sha256(b''.join(parts)).hexdigest()[:8]}"
