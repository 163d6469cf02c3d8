"""The table of figures in the README, from benchmarks/results."""

from pathlib import Path
from typing import Any

import orjson

from benchmarks import runs as encoder
from benchmarks.common import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"


def shown(value: Any) -> str:
    """A figure as read by people."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    return f"{value:,}"


def encoder_rows(figures: dict[str, dict[str, Any]]) -> list[str]:
    """A line a figure of the encoder's, which have conditions and commands of their own."""
    out = []
    for name, r in figures.items():
        interval = f" ({r['low']}–{r['high']})" if "low" in r else ""
        out.append(f"| encoder | {name}: **{r.get('value')}**{interval} | 95 % bootstrap interval | {r['about']} | `{r['command']}` | {r['date']} |")
    return out


def table() -> str:
    """One line a question."""
    rows = ["| question | figures | unit | conditions | command | date |", "|---|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        r = orjson.loads(path.read_bytes())
        if path == encoder.FILE:
            rows += encoder_rows(r)
            continue
        figures = "<br>".join(f"{k}: **{shown(v)}**" for k, v in r["figures"].items())
        rows.append(f"| {r['question']} | {figures} | {r['unit']} | {r['note']} | `{r['command']}` | {r['date']} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.split(END)[1])
