"""Whether training was worth it, in words and as a page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoder.recipe import Recipe
from training.evaluate import Ranked
from training.report import write_report
from training.verdict import judged

N = 400


def ranked(hits: int) -> Ranked:
    """Of N cases so many are among the first ten."""
    rank = np.where(np.arange(N) < hits, 1, 50)
    return Ranked(rank, np.zeros((N, 50), np.int64))


CASES: list[tuple[int, int, bool, bool, str]] = [
    (4, 100, True, False, "warning: the trained encoder is worse than the one that it began from"),
    (200, 100, False, True, "better than its start"),
    (101, 100, False, False, "not shown to be better than its start"),
    (100, 100, False, False, "not shown to be better than its start"),
]


@pytest.mark.parametrize(("trained", "before", "worse", "better", "says"), CASES)
def test_verdict(trained: int, before: int, worse: bool, better: bool, says: str) -> None:
    """Start and baseline are told with the paired differences; worse is what is shown to be."""
    verdict = judged({"trained": ranked(trained), "before": ranked(before), "decayed mean": ranked(60)}, "v1")
    assert (verdict.worse, verdict.better) == (worse, better)
    lines = verdict.lines()
    assert lines[0] == f"trained: hr@10 {trained / N:.4f}"
    assert lines[1].startswith(f"start (v1): hr@10 {before / N:.4f}; trained minus that {(trained - before) / N:+.4f} (95 % ")
    assert lines[2].startswith(f"baseline (decayed mean): hr@10 {60 / N:.4f}; trained minus that {(trained - 60) / N:+.4f}")
    assert lines[3].startswith(says)


def test_report(tmp_path: Path) -> None:
    """The page begins with the verdict, and has the behavior report."""
    verdict = judged({"trained": ranked(4), "before": ranked(100), "decayed mean": ranked(60)}, "v1")
    figure = {"mean": 0.1, "low": 0.0, "high": 0.2}
    slices = {"all": {**dict.fromkeys(("hr@10", "ndcg@10", "recall@50", "mrr"), figure), "coverage@10": 0.1, "concentration@10": 0.2, "cases": 9}}
    behavior = {"shop": {"buy": {"precision": 0.5, "recall": 0.25, "f1-score": 0.33, "support": 12.0}}}
    results: dict[str, Any] = {"cases": 9, "policy": "all", "models": {"before": slices, "trained": slices}, "behavior": behavior}
    history = [{"loss": 2.0, "valid_ndcg@10": 0.1}, {"loss": 1.0, "valid_ndcg@10": 0.2}]
    write_report(tmp_path / "a.html", "v2", results, history, Recipe(), verdict)
    page = (tmp_path / "a.html").read_text()
    assert page.index("warning: the trained encoder is worse") < page.index("<h2>all")
    assert "<td>buy</td><td>0.500</td><td>0.250</td><td>0.330</td><td>12</td>" in page


def test_course(monkeypatch: pytest.MonkeyPatch) -> None:
    """The course of training counts epochs as the terminal does, and names both curves."""
    from training.report import _course

    figure = _course([{"loss": 2.0, "valid_ndcg@10": 0.1}, {"loss": 1.0, "valid_ndcg@10": 0.2}])
    left, right = figure.axes
    assert [list(axis.lines[0].get_xdata()) for axis in (left, right)] == [[1, 2], [1, 2]]
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["loss", "validation NDCG@10"]


def test_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Training that made it worse ends with status 3, after its bundle was written; otherwise with 0."""
    from typer.testing import CliRunner

    from encoder.bundle import open_bundle
    from training import run
    from training.__main__ import app

    (tmp_path / "job.json").write_text('{"data": "d", "platforms": []}')
    made: Callable[[int], Any] = lambda hits: judged({"trained": ranked(hits), "before": ranked(100), "decayed mean": ranked(60)}, "v1")  # noqa: E731
    for hits, status in ((4, 3), (200, 0)):
        monkeypatch.setattr(run, "train_and_export", lambda *_, hits=hits: (open_bundle("demo"), made(hits)))
        done = CliRunner().invoke(app, ["train", str(tmp_path / "job.json"), "--out", str(tmp_path / "out")])
        assert done.exit_code == status, done.output
        assert '"version"' in done.output
