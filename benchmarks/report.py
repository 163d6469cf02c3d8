"""The table of figures in the README, from benchmarks/results."""

from pathlib import Path
from typing import Any

import orjson

from benchmarks import runs as encoder
from benchmarks import scale
from benchmarks.common import RESULTS

ROOT = Path(__file__).parents[1]
ABLATION = "ablation.json"


def shown(value: Any) -> str:
    """A figure as read by people."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    return value if isinstance(value, str) else f"{value:,}"


def encoder_rows(figures: dict[str, dict[str, Any]]) -> list[str]:
    """A line a figure of the encoder's, which have conditions and commands of their own."""
    out = []
    for name, r in figures.items():
        if "curve" in r:
            continue
        interval = f" ({r['low']}–{r['high']})" if "low" in r else ""
        out.append(f"| encoder | {name}: **{r.get('value')}**{interval} | 95 % bootstrap interval | {r['about']} | `{r['command']}` | {r['date']} |")
    return out


def table() -> str:
    """One line a question."""
    rows = ["| question | figures | unit | conditions | command | date |", "|---|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        r = orjson.loads(path.read_bytes())
        if path.name in (encoder.FILE.name, ABLATION):
            rows += encoder_rows(r) if path == encoder.FILE else []
            continue
        figures = "<br>".join(f"{k}: **{shown(v)}**" for k, v in r["figures"].items())
        rows.append(f"| {r['question']} | {figures} | {r['unit']} | {r['note']} | `{r['command']}` | {r['date']} |")
    return "\n".join(rows) + "\n"


def with_interval(r: dict[str, float]) -> str:
    """A figure and what it lies between."""
    return f"{r.get('value', r.get('mean')):.3f} ({r['low']:.3f} to {r['high']:.3f})"


def curves(figures: dict[str, dict[str, Any]]) -> str:
    """The next item's HR@10 by the age of the profile: one table by missing events, one by time."""
    out = []
    if "stale_events" in figures:
        curve = figures["stale_events"]["curve"]
        parts = [(model, platform) for model, ages in curve.items() for platform in next(iter(ages.values()))]
        out += ["| newest events not seen | " + " | ".join(f"{p}: {m}" for m, p in parts) + " |", "|---" * (len(parts) + 1) + "|"]
        out += [f"| {age} | " + " | ".join(with_interval(curve[m][age][p]) for m, p in parts) + " |" for age in next(iter(curve.values()))]
    if "stale_time" in figures:
        curve = figures["stale_time"]["curve"]
        out += ["", "| age of the profile | " + " | ".join(curve) + " |", "|---" * (len(curve) + 1) + "|"]
        out += [f"| {age} | " + " | ".join(with_interval(curve[m][age]) for m in curve) + " |" for age in next(iter(curve.values()))]
    return "\n".join(out) + "\n"


def ablations(tables: dict[str, dict[str, Any]]) -> str:
    """One table a log: a line a part, its HR@10 and the paired difference to the encoder with all parts."""
    out = []
    for name, rows in tables.items():
        platforms = list(next(iter(rows.values()))["hr@10"])
        heads = [h for p in platforms for h in (f"HR@10 {p}", "over all parts")]
        out += [f"**{name}**", "", "| | " + " | ".join(heads) + " | epochs |", "|---" * (len(heads) + 2) + "|"]
        for part, r in rows.items():
            cells = [c for p in platforms for c in (with_interval(r["hr@10"][p]), with_interval(r["over all parts, hr@10"][p]))]
            out.append(f"| {part} | " + " | ".join(cells) + f" | {r['epochs']} |")
        out.append("")
    return "\n".join(out)


def variants(row: dict[str, Any]) -> str:
    """A line a variant of an encoder: metric, size, speed, and what the gate said."""
    out = ["| variant | NDCG@10 | difference, 95 % | MB | ms for 64 windows | whole one's, beside it | gate |", "|---|---|---|---|---|---|---|"]
    for name, v in row["figures"].items():
        cells = [v["NDCG@10"], v.get("difference", ""), v["MB"], v["ms"], v.get("beside ms", ""), v.get("gate", "")]
        out.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*out, "", f"`{row['command']}`, {row['date']}: {row['note']}.", ""])


def put(page: Path, mark: str, text: str) -> None:
    """Replace what stands between a page's marks."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + text + end + rest.split(end)[1])


def main() -> None:
    """All pages that show figures."""
    put(ROOT / "README.md", "figures", table())
    put(ROOT / "docs" / "scale.md", "scale", scale.tables())
    if encoder.FILE.exists():
        put(ROOT / "README.md", "age of profiles", curves(orjson.loads(encoder.FILE.read_bytes())))
    if (RESULTS / "compress.json").exists():
        put(ROOT / "docs" / "lifecycle.md", "compress", variants(orjson.loads((RESULTS / "compress.json").read_bytes())))
    if (RESULTS / ABLATION).exists():
        put(ROOT / "docs" / "encoder.md", "parts", ablations(orjson.loads((RESULTS / ABLATION).read_bytes())))


if __name__ == "__main__":
    main()
