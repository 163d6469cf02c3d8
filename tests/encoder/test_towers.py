"""Item towers, their whitening, and the texts that it is fitted on."""

import json
from pathlib import Path

import numpy as np
import pytest

from encoder.towers import MANIFEST, MAX_CHARS, TowerError, cut, load_tower, text_model
from training.corpus import titles
from training.whiten import fit_on, source_of, whitening, write

TEXTS = ["Espresso machine with milk foamer", "Coffee grinder for espresso", "Garden hose, 20 m", "", "   ", "☃"]


def test_static() -> None:
    """The shipped tower gives unit vectors, like texts lie near each other, and a text without a known token is zero."""
    tower = load_tower("static")
    vectors = tower.encode(TEXTS)
    assert vectors.shape == (6, tower.dims)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
    assert not vectors[3:].any()
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    assert tower.encode([]).shape == (0, tower.dims)


def test_shipped_files() -> None:
    """What is shipped is small, says its licence, and is whitened: cosines of unlike texts are about zero."""
    folder = Path(__file__).parents[2] / "encoder" / "data" / "static"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 16_000_000
    assert json.loads((folder / MANIFEST).read_text())["licence"] == "Apache-2.0"
    assert "Apache License, Version 2.0" in (folder.parent / "NOTICE").read_text()
    words = "lamp tent grinder guitar lens kettle novel racket sofa drill helmet tea boots clock map piano soap rug bread tripod".split()
    vectors = load_tower("static").encode(words)
    assert abs((vectors @ vectors.T)[np.triu_indices(len(words), 1)].mean()) < 0.1


@pytest.mark.parametrize(("name", "says"), [("intfloat/e5", "python -m training.whiten intfloat/e5"), ("nowhere", "want 'static'")])
def test_refused(name: str, says: str) -> None:
    """A tower without fitted whitening is refused with the command that makes one."""
    with pytest.raises(TowerError, match=says):
        load_tower(name)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"dims": 3}'])
def test_broken_manifest(tmp_path: Path, text: str) -> None:
    """A tower's folder that is broken is refused, naming the file."""
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(TowerError, match=r"tower\.json"):
        load_tower(str(tmp_path))


def test_whitening() -> None:
    """Whitened vectors have no mean and unit covariance."""
    r = np.random.default_rng(0)
    vectors = r.standard_normal((2000, 6)) @ r.standard_normal((6, 6)) + 5
    mean, matrix = whitening(vectors, 4)
    white = (vectors - mean) @ matrix
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=1e-6)


def test_corpus(tmp_path: Path) -> None:
    """Title-like texts come from WordNet's files, the same for a seed; without the files the package is named."""
    for name, line in (("noun", "{n} {f:02d} n 01 word{f} 0 000 | gloss"), ("adj", "{n} {f:02d} a 01 quick 0 000 | gloss")):
        files = (0,) if name == "adj" else (6, 13, 15, 18, 27)
        (tmp_path / f"data.{name}").write_text("  1 licence\n" + "\n".join(line.format(n=f, f=f) for f in files) + "\n")
    assert titles(tmp_path, 50, 1) == titles(tmp_path, 50, 1) != titles(tmp_path, 50, 2)
    assert any("word6" in t for t in titles(tmp_path, 50, 1))
    with pytest.raises(FileNotFoundError, match="wordnet-base"):
        titles(tmp_path / "none", 1, 1)


@pytest.mark.slow
def test_hugging_face(tmp_path: Path) -> None:
    """Any Hugging Face text model is a tower once its whitening is fitted; too few texts are refused."""
    nouns = "lamp tent grinder guitar lens kettle novel racket sofa drill".split()
    texts = [f"{a} {b} number {n}" for n, (a, b) in enumerate((a, b) for a in nouns for b in nouns)]
    model = text_model(source_of(""), 64)
    write(model, fit_on(model, texts, 16, 0), tmp_path / "tower", "test")
    tower = load_tower(str(tmp_path / "tower"))
    vectors = tower.encode(["lamp", "a lamp", "guitar", ""])
    assert (tower.dims, vectors.shape) == (16, (4, 16))
    assert tower.space_id.startswith("hf-16-")
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert not vectors[3].any()
    with pytest.raises(TowerError, match="at least 32, got 5"):
        fit_on(model, texts[:5], 16, 0)


def test_endless_text() -> None:
    """Of a text no more is read than any tower's tokens need."""
    text = "green tea " * 2000
    assert [len(t) for t in cut([text, "tea"])] == [MAX_CHARS, 3]
    tower = load_tower("static")
    np.testing.assert_array_equal(tower.encode([text]), tower.encode([text[:MAX_CHARS]]))
