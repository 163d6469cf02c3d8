"""The table of figures in the README, from benchmarks/results."""

from pathlib import Path
from typing import Any

import orjson

from benchmarks.common import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"


def shown(value: Any) -> str:
    """A figure as read by people."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    return f"{value:,}"


def table() -> str:
    """One line a question."""
    rows = ["| question | figures | unit | conditions | command | date |", "|---|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        r = orjson.loads(path.read_bytes())
        figures = "<br>".join(f"{k}: **{shown(v)}**" for k, v in r["figures"].items())
        rows.append(f"| {r['question']} | {figures} | {r['unit']} | {r['note']} | `{r['command']}` | {r['date']} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.split(END)[1])
