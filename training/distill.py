"""A text model distilled into a static item tower: one vector a token (model2vec), whitened on texts, rounded to int8. Needs no torch to run.

    python -m training.distill --wordnet /usr/share/wordnet --out encoder/data/static       # the shipped tower, of all-MiniLM-L6-v2
    python -m training.distill --model towers/mine --corpus titles.txt --out towers/fast    # any model, fine-tuned ones too, on your own titles

Whitening (training.whiten) is linear, so it is folded into the token vectors; what is left of the mean is a bias, stored beside them.
"""

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from encoder.text import quiet
from encoder.towers import BIAS, MANIFEST, TowerError
from training.corpus import titles
from training.whiten import check, lines, source_of, whitening, whole

SHIPPED = Path("encoder/data/static")
SOURCE = "sentence-transformers/all-MiniLM-L6-v2"
DISTILLED_DIMS = 256
TEXTS = 60_000
MADE_BY = "python -m training.distill"


def distil(texts: Sequence[str], dims: int, out: Path, model: str = "", made_by: str = MADE_BY, replace: bool = False) -> None:
    """Write the tower of a model (name or folder; empty: the shipped one's) to `out`. Raises TowerError for what cannot be distilled."""
    static, bias = rounded(texts, dims, source_of(model))
    source = model if model and not Path(model).is_dir() else Path(model).name or SOURCE
    with whole(out, replace) as folder:
        static.save_pretrained(folder)
        for name in ("README.md", "modules.json"):  # the card of the library, not ours
            (folder / name).unlink(missing_ok=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tokenizer_name": source}, indent=1))
        np.save(folder / BIAS, bias)
        digest = hashlib.sha256(b"".join((folder / f).read_bytes() for f in ("model.safetensors", "tokenizer.json", BIAS))).hexdigest()
        manifest = {
            "space_id": f"static-{'' if model else 'minilm-'}{dims}-{digest[:8]}",
            "dims": dims,
            "source": source,
            **({} if model else {"licence": "Apache-2.0"}),
            "made_by": made_by,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def rounded(texts: Sequence[str], dims: int, source: str) -> tuple[Any, np.ndarray]:
    """-> the StaticModel, and its bias (dims,). Raises TowerError."""
    from model2vec import StaticModel
    from model2vec.distill import distill

    check(len(texts), dims)
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # bars of its own
            model = distill(model_name=source, pca_dims=max(DISTILLED_DIMS, dims))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TowerError(f"model {source!r}: cannot be distilled: {(str(error) or repr(error)).splitlines()[0]}") from None
    weights = np.ones(len(model.embedding)) if model.weights is None else model.weights
    tokens = model.embedding.astype(np.float64) * weights[:, None]
    if dims > tokens.shape[1]:
        raise TowerError(f"dims = {dims}: the model has {tokens.shape[1]}")
    plain = StaticModel(tokens.astype(np.float32), model.tokenizer, normalize=False)
    mean, matrix = whitening(plain.encode(list(texts)), dims)
    whitened = (tokens - mean) @ matrix  # the mean of whitened tokens is the whitened mean: no bias before rounding
    scale = 127 / np.quantile(np.abs(whitened), 0.9999)
    static = StaticModel(np.clip(np.rint(whitened * scale), -127, 127).astype(np.int8), model.tokenizer, normalize=False)
    return static, -static.encode(list(texts)).mean(0).astype(np.float32)


def main(
    wordnet: Annotated[Path | None, typer.Option(help="Folder with WordNet's data.noun and data.adj: the shipped tower's texts")] = None,
    corpus: Annotated[Path | None, typer.Option(help="One text a line, like the items' titles")] = None,
    model: Annotated[str, typer.Option(help="Hugging Face text model: a name, its folder, or a tower's folder; all-MiniLM-L6-v2 by default")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write; with --wordnet alone the shipped tower's, which is replaced")] = None,
    dims: int = 192,
    seed: int = 0,
) -> None:
    """Distil, whiten and quantise."""
    try:
        if (wordnet is None) == (corpus is None):
            raise TowerError("want one of --wordnet and --corpus")
        if out is None and (corpus or model):
            raise TowerError("want --out, the folder to write")
        with Console(file=sys.stderr).status("distilling"):
            texts = lines(corpus) if corpus else titles(wordnet, TEXTS, seed)  # type: ignore[arg-type] # one of them is there
            distil(texts, dims, out or SHIPPED, model, replace=corpus is None and not model)
    except (TowerError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    typer.run(main)
