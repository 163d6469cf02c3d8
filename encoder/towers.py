"""Item towers: content -> item vectors. The static one is shipped and needs no torch; any Hugging Face text model is a setting."""

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from zipfile import BadZipFile

import numpy as np
from model2vec import StaticModel
from safetensors import SafetensorError

from encoder.baseline import l2

if TYPE_CHECKING:
    from encoder.text import TextModel

MANIFEST, BIAS, WHITENING = "tower.json", "bias.npy", "whitening.npz"
MODEL = "model"
"""Folder of a text model inside its tower's folder."""
STATIC = "static"
MAX_CHARS = 16_384  # of a text; every tower's tokens are fewer


class TowerError(ValueError):
    """A tower that cannot be used; the message names it, the reason and the remedy."""


class Tower(Protocol):
    """Maps texts to item vectors."""

    space_id: str
    """Changes with anything that changes vectors."""
    dims: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> (n, dims) float32, whitened, L2-normalised; a zero row for a text without a known token."""
        ...


def load_tower(name: str) -> Tower:
    """`static`, or a folder that `currents tower`, training.distill or training.whiten wrote. Raises TowerError."""
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
        raw = np.asarray(self._model.encode(cut(texts), use_multiprocessing=False), np.float32)
        return l2(np.where(raw.any(1, keepdims=True), raw + self._bias, 0))


class TransformerTower:
    """A Hugging Face text model, mean-pooled over tokens, whitened by a fitted matrix. Imports torch and transformers late."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.space_id, self.dims = manifest["space_id"], int(manifest["dims"])
        try:
            with np.load(folder / WHITENING) as stored:
                self._mean, self._matrix = stored["mean"], stored["matrix"]
            source, max_tokens = str(manifest["model"]), int(manifest.get("max_tokens", 128))
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise TowerError(f"{folder}: {error}") from None
        inside = folder / source  # a model of the folder's own moves with it
        self._model = text_model(str(inside) if inside.is_dir() else source, max_tokens, manifest.get("precision") == "bf16")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> (n, dims) float32, whitened, L2-normalised; a zero row for an empty text."""
        if not texts:
            return np.zeros((0, self.dims), np.float32)
        return whitened(self._model.embed(cut(texts)), self._mean, self._matrix, texts)


def cut(texts: Sequence[str]) -> list[str]:
    """The texts, of each no more than a tower reads: tokenizers take time and memory for all of it first."""
    return [text[:MAX_CHARS] for text in texts]


def whitened(vectors: np.ndarray, mean: np.ndarray, matrix: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """(n, hidden) vectors of n texts, mean (hidden,), matrix (hidden, dims) -> (n, dims) float32, L2-normalised; a zero row for an empty text."""
    out = l2((vectors - mean) @ matrix).astype(np.float32)
    out[[not t.strip() for t in texts]] = 0
    return out


def text_model(source: str, max_tokens: int, bf16: bool = False, device: str = "cpu") -> "TextModel":
    """A Hugging Face text model (name or folder). Raises TowerError naming the extra that is missing, or why it cannot be read."""
    try:
        from encoder.text import TextModel
    except ImportError:
        raise TowerError(f'tower {source!r} needs torch and transformers: pip install "currents[train]"') from None
    try:
        return TextModel(source, max_tokens, bf16, device)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:  # transformers fails in many ways on what is no text model
        raise TowerError(f"tower {source!r}: no text model that can be read: {(str(error) or repr(error)).splitlines()[0]}") from None


def space_of(kind: str, dims: int, *parts: bytes) -> str:
    """A space_id with a digest of `parts`: other bytes give another id."""
    return f"{kind}-{dims}-{hashlib.sha256(b''.join(parts)).hexdigest()[:8]}"
