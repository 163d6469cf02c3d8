"""Fit the whitening of a Hugging Face text model on your own texts, and write a tower folder for the setting `encoding.tower`.

python -m training.whiten intfloat/e5-small-v2 --corpus titles.txt --out towers/e5
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from encoder.towers import MANIFEST, WHITENING, TowerError, mean_pooler, space_of
from training.distill import whitening


def fit(model: str, texts: list[str], dims: int, out: Path) -> None:
    """Write a whitened tower. Raises TowerError for too few texts or a model that cannot be loaded."""
    if len(texts) < 2 * dims:
        raise TowerError(f"corpus: want at least {2 * dims} texts for {dims} dims, got {len(texts)}")
    vectors = mean_pooler(model)(texts)
    if dims > vectors.shape[1]:
        raise TowerError(f"dims = {dims}: the model has {vectors.shape[1]}")
    mean, matrix = whitening(vectors, dims)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / WHITENING, mean=mean.astype(np.float32), matrix=matrix.astype(np.float32))
    space = space_of("hf", dims, model.encode(), mean.tobytes(), matrix.tobytes())
    (out / MANIFEST).write_text(json.dumps({"space_id": space, "dims": dims, "model": model}, indent=1) + "\n")


def main(
    model: str,
    corpus: Annotated[Path, typer.Option(help="One text a line, like the items' titles")],
    out: Annotated[Path, typer.Option(help="Folder to write")],
    dims: int = 128,
) -> None:
    """Fit and write."""
    try:
        fit(model, [line for line in corpus.read_text().splitlines() if line.strip()], dims, out)
    except (TowerError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    typer.run(main)
