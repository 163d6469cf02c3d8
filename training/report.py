"""The report of a training run: before and after, the baselines, the course of training. One HTML file, nothing to load."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from encoder.recipe import Recipe
from training.verdict import Verdict

SHOWN = ("hr@10", "ndcg@10", "recall@50", "mrr")
STYLE = (
    "body{font:15px sans-serif;max-width:60em;margin:2em auto}td,th{padding:.2em .8em;text-align:right}td:first-child,th:first-child{text-align:left}"
)


def write_report(
    path: Path, version: str, results: Mapping[str, Any], history: Sequence[Mapping[str, float]], recipe: Recipe, verdict: Verdict
) -> None:
    """Write the page: the verdict first."""
    about = f"{results['cases']} test targets; {html.escape(results['policy'])}. Means with 95 % bootstrap intervals."
    *figures, meaning = verdict.lines()
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in figures)
    parts = [f"<h1>{html.escape(version)}</h1><p><b>{html.escape(meaning)}</b></p><ul>{listed}</ul><p>{about}</p>"]
    for part in next(iter(results["models"].values())):
        rows = "".join(_row(name, slices[part]) for name, slices in results["models"].items())
        head = "".join(f"<th>{m}</th>" for m in (*SHOWN, "coverage@10", "concentration@10"))
        cases = next(iter(results["models"].values()))[part]["cases"]
        parts.append(f"<h2>{html.escape(part)}: {cases} cases</h2><table><tr><th>model</th>{head}</tr>{rows}</table>")
    parts += [_image(_bars(results)), _image(_course(history))]
    parts += [_behavior(platform, rows) for platform, rows in results.get("behavior", {}).items()]
    parts.append(f"<h2>recipe</h2><pre>{html.escape(recipe.model_dump_json(indent=1))}</pre>")
    path.write_text(f"<!doctype html><meta charset=utf-8><title>{html.escape(version)}</title><style>{STYLE}</style>{''.join(parts)}\n")


def _row(name: str, r: Mapping[str, Any]) -> str:
    cells = [f"{r[m]['mean']:.4f} <small>({r[m]['low']:.4f}–{r[m]['high']:.4f})</small>" for m in SHOWN]
    cells += [f"{r['coverage@10']:.3f}", f"{r['concentration@10']:.3f}"]
    return f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"


def _behavior(platform: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """How well the behavior of each event is told, its own hidden."""
    head = "<tr><th>behavior</th><th>precision</th><th>recall</th><th>f1</th><th>events</th></tr>"
    cells = {name: [*(f"{r[k]:.3f}" for k in ("precision", "recall", "f1-score")), str(int(r["support"]))] for name, r in rows.items()}
    body = "".join(f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for name, row in cells.items())
    return f"<h2>behavior of each event, its own hidden: {html.escape(platform)}</h2><table>{head}{body}</table>"


def _figure(width: float) -> Any:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(width, 3.5))


def _bars(results: Mapping[str, Any]) -> Any:
    figure, axis = _figure(9)
    models = list(results["models"])
    parts = [p for p in results["models"][models[0]] if p.startswith("platform") or p in ("all", "item-cold")]
    for n, name in enumerate(models):
        found = [results["models"][name][p]["hr@10"] for p in parts]
        errors = [[f["mean"] - f["low"] for f in found], [f["high"] - f["mean"] for f in found]]
        axis.bar([i + n / (len(models) + 1) for i in range(len(parts))], [f["mean"] for f in found], 1 / (len(models) + 1), yerr=errors, label=name)
    axis.set_xticks([i + 0.4 for i in range(len(parts))], parts)
    axis.set_ylabel("HR@10")
    axis.legend(fontsize=8)
    return figure


def _course(history: Sequence[Mapping[str, float]]) -> Any:
    figure, axis = _figure(9)
    epochs = range(1, len(history) + 1)  # as the terminal counts them
    axis.plot(epochs, [row["loss"] for row in history], marker="o", label="loss")
    axis.set_xticks(epochs)
    axis.set_xlabel("epoch")
    axis.set_ylabel("loss")
    right = axis.twinx()
    right.plot(epochs, [row["valid_ndcg@10"] for row in history], marker="o", color="tab:green", label="validation NDCG@10")
    right.set_ylabel("validation NDCG@10")
    figure.legend(fontsize=8, loc="upper center", ncols=2)
    return figure


def _image(figure: Any) -> str:
    stream = io.BytesIO()
    figure.tight_layout()
    figure.savefig(stream, format="png", dpi=90)
    return f'<p><img src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}" alt="plot"></p>'
