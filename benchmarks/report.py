"""Writes the tables of figures in the README and in docs/ from benchmarks/results."""

from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from benchmarks import runs as encoder
from benchmarks import scale
from benchmarks.common import RESULTS
from benchmarks.job import PRESETS

ROOT = Path(__file__).parents[1]
ABLATION = "ablation.json"
Row = dict[str, Any]


class Headline(NamedTuple):
    """A row of the tables of headlines."""

    what: str
    question: str
    """Question whose result has the figure."""
    figures: tuple[tuple[str, ...], ...]
    """Paths of the figures in the result."""
    goal: str


HEADLINES = (
    Headline(
        "stub encoder: times Quix Streams 3.28; times a bare confluent-kafka loop",
        "plumbing",
        (("ratios", "currents / quix"), ("ratios", "currents / bare_loop")),
        "≥ 2; ≥ 0.6",
    ),
    Headline(
        "encoder S: times Quix Streams an event at a time; batched by hand",
        "encoders",
        (("ratios", "currents / quix"), ("ratios", "currents / quix_batched")),
        "≥ 5; ≥ 2",
    ),
    Headline(
        "one worker, whole job, baseline encoder, events/s: new users; full windows of 64",
        "whole",
        (("figures", "new users"), ("figures", "full windows")),
        "≥ 15,000",
    ),
    Headline(
        "one worker, whole job, 100,000 users, events/s: encoder S; S in int8; XS; XS in int8",
        "job",
        tuple(("figures", f"preset {name}", "100,000 users") for name in PRESETS),
        "S ≥ 5,000; XS ≥ 10,000",
    ),
    Headline("two worker processes on 2 cores: times one", "processes", (("figures", "2 over 1"),), "≥ 1.3"),
    Headline("32 partitions in one worker: times one partition's events/s", "partitions", (("figures", "32 over 1"),), "flat"),
    Headline(
        "from an event in Kafka to its acknowledged profile, p99, ms: at half the most that a worker takes; at 90 %",
        "age",
        (("figures", "50%", "p99"), ("figures", "90%", "p99")),
        "≤ 250; ≤ 1,000",
    ),
    Headline(
        "reads from a replica beside 2,000 events/s, p99, ms: 1,000 a second; 50 batches of 100 a second; both where the worker gives way to it",
        "reads",
        tuple(
            ("figures", f"{beside}, {mix} alone", one, "p99")
            for beside in ("replica", "replica beside a worker of niceness 10")
            for mix, one in (("singles", "single"), ("batches", "batch of 100"))
        ),
        "≤ 5; ≤ 20",
    ),
    Headline("an emptied worker restores, rows/s", "restore", (("figures", "rows/s"),), "≥ 200,000"),
    Headline(
        "on disk: a million users without windows, GiB; a full window, bytes",
        "disk",
        (("figures", "a million users, GiB", "profiles on disk"), ("figures", "windows on disk")),
        "≤ 0.8; ≤ 2,253",
    ),
    Headline(
        "ten times what a worker takes, for five minutes: events lost; windows wrong; most MiB; s until nothing waited",
        "overload-10x-300s",
        tuple(("figures", name) for name in ("events lost", "windows wrong", "most MiB", "seconds after the storm until nothing waited")),
        "0; 0; bounded",
    ),
    Headline("an hour at half load: MiB; file handles", "soak", (("figures", "mib"), ("figures", "handles")), "flat"),
    Headline(
        "retraining from a million events, s: in all; but training",
        "retrain",
        (("figures", "seconds"), ("figures", "but training")),
        "≤ 1,800; ≤ 180",
    ),
    Headline(
        "another encoder takes over under load: p99 age until then, times that before; share of free capacity used after it",
        "swap",
        (("figures", "no rate set", "times that before"), ("figures", "no rate set", "share of it")),
        "≤ 2; ≥ 0.7",
    ),
    Headline(
        "seven weeks of drifting tastes, HR@10 less that of the first week: retrained weekly; frozen",
        "weekly",
        (("figures", "retrained against the first"), ("figures", "frozen against the first")),
        "≥ -0.05",
    ),
)


SHORT = ("plumbing", "whole", "job", "age", "restore", "overload-10x-300s", "retrain")
"""Questions with headlines in the README. docs/figures.md has all headlines."""


def headlines(questions: Container[str] | None = None) -> str:
    """Return a table of figures and goals, of all headlines or of those of some questions."""
    out = ["| | measured | goal | command | date |", "|---|---|---|---|---|"]
    for line in HEADLINES:
        if questions is not None and line.question not in questions:
            continue
        if (r := scale.read(line.question, RESULTS)) is not None:
            found = "; ".join("not measured" if (value := scale.at(r, path)) is None else shown(value) for path in line.figures)
            out.append(f"| {line.what} | **{found}** | {line.goal} | `{r['command']}` | {r['date']} |")
    return "\n".join(out) + "\n"


def costs(r: Row) -> str:
    """Return the table of the cost of a million events: a row per part of the job, a column per encoder."""
    gpus = r["figures"]["events/s per GPU, encoder alone"]
    encoders = {name: parts for name, parts in r["figures"].items() if parts is not gpus}
    out = ["| core-seconds for a million events | " + " | ".join(encoders) + " |", "|---" * (len(encoders) + 1) + "|"]
    for what in next(iter(encoders.values())):
        out.append(f"| {what} | " + " | ".join(shown(parts[what]) for parts in encoders.values()) + " |")
    out.append("| events/s per GPU, encoder alone | " + " | ".join(shown(gpus.get(name, "")) for name in encoders) + " |")
    return "\n".join([*out, "", f"`{r['command']}`, {r['date']}, {r['machine']}: {r['note']}.", ""])


def shown(value: Any) -> str:
    """Format a figure for readers."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    return value if isinstance(value, str) else f"{value:,}"


def encoder_rows(figures: dict[str, Row]) -> list[str]:
    """Return a row per figure of the encoder. These figures have their own conditions and commands."""
    out = []
    for name, r in figures.items():
        if "curve" in r:
            continue
        interval = f" ({r['low']}–{r['high']})" if "low" in r else ""
        out.append(f"| encoder | {name}: **{r.get('value')}**{interval} | 95 % bootstrap interval | {r['about']} | `{r['command']}` | {r['date']} |")
    return out


def table() -> str:
    """Return a table with one row per question."""
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
    """Format a figure and its interval."""
    return f"{r.get('value', r.get('mean')):.3f} ({r['low']:.3f} to {r['high']:.3f})"


def curves(figures: dict[str, Row]) -> str:
    """Return tables of the next item's HR@10 by the profile's age: one by missing events, one by time."""
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


def ablations(tables: dict[str, Row]) -> str:
    """Return one table per log: a row per part with its HR@10 and the paired difference to the encoder with all parts."""
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


def variants(row: Row) -> str:
    """Return a row per variant of an encoder: metric, size, speed, and the gate's result."""
    out = ["| variant | NDCG@10 | difference, 95 % | MB | ms for 64 windows | whole one's, beside it | gate |", "|---|---|---|---|---|---|---|"]
    for name, v in row["figures"].items():
        cells = [v["NDCG@10"], v.get("difference", ""), v["MB"], v["ms"], v.get("beside ms", ""), v.get("gate", "")]
        out.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*out, "", f"`{row['command']}`, {row['date']}: {row['note']}.", ""])


def put(page: Path, mark: str, text: str) -> None:
    """Replace the text between a page's marks."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + text + end + rest.split(end)[1])


def main() -> None:
    """Update all pages that show figures."""
    put(ROOT / "README.md", "figures", headlines(SHORT))
    put(ROOT / "docs" / "figures.md", "headlines", headlines())
    put(ROOT / "docs" / "figures.md", "figures", table())
    put(ROOT / "docs" / "scale.md", "scale", scale.tables())
    if encoder.FILE.exists():
        put(ROOT / "docs" / "figures.md", "age of profiles", curves(orjson.loads(encoder.FILE.read_bytes())))
    if (cost := scale.read("cost", RESULTS)) is not None:
        put(ROOT / "docs" / "figures.md", "cost", costs(cost))
    if (compressed := scale.read("compress", RESULTS)) is not None:
        put(ROOT / "docs" / "lifecycle.md", "compress", variants(compressed))
    if (RESULTS / ABLATION).exists():
        put(ROOT / "docs" / "encoder.md", "parts", ablations(orjson.loads((RESULTS / ABLATION).read_bytes())))


if __name__ == "__main__":
    main()
