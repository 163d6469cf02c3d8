"""Estimates the resources for 10 million and for a billion users from this machine's figures and named assumptions: python -m benchmarks.scale

Needs no broker: it reads benchmarks/results. docs/scale.md has the printed tables between marks.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

RESULTS = Path(__file__).parent / "results"


USERS = (10_000_000, 1_000_000_000)
DAY_S, GIB = 86_400, 2**30


def _is(value: float, meaning: str) -> float:
    made: float = field(default=value, metadata={"meaning": meaning})
    return made


@dataclass(frozen=True)
class Assumed:
    """Assumptions that no benchmark here can measure. Change them to your values and run the script again."""

    active: float = _is(0.2, "share of users who act on a day")
    events: float = _is(30, "events of such a user on that day")
    peak: float = _is(3, "rate of the busiest minute over the day's mean")
    load: float = _is(0.5, "share of its maximum that a worker is planned for at peak")
    json_bytes: float = _is(600, "a platform's record")
    event_bytes: float = _is(130, "a unified event with its key and Kafka's own bytes")
    platform_days: float = _is(7, "retention of the platforms' topics")
    event_days: float = _is(30, "retention of the unified topic: `ingest.event_days`")
    dirty: float = _is(2, "a compacted topic on disk over its last rows: rows that are not compacted away yet")
    replication: float = _is(3, "`kafka.replication`")
    restore_s: float = _is(300, "seconds in which a worker with an empty volume is to be back")
    spread: float = _is(4, "partitions a worker, so that those of a dead one spread evenly")
    cell: float = _is(32, "workers in a group: a rebalance stops all of them")
    items: float = _is(5e6, "items of all platforms; each worker knows them all")
    item_bytes: float = _is(192 * 4 + 128 * 4 + 300, "memory of an item: the tower's vector, the encoder's, title and categories")


@dataclass(frozen=True)
class Figure:
    """A measured figure and its source."""

    name: str
    value: float
    unit: str
    source: str
    note: str = ""


def read(question: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return a benchmark's result; None if the benchmark has not run yet."""
    path = folder / f"{question}.json"
    return orjson.loads(path.read_bytes()) if path.exists() else None


def at(row: Any, path: Iterable[str]) -> Any:
    """Return the value at a path of keys; None if there is none."""
    for key in path:
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _first(*wanted: tuple[str, tuple[str, ...], str]) -> tuple[float, str, str] | None:
    """Return the first of the wanted figures that was measured: value, source, note."""
    for name, path, note in wanted:
        found = at(read(name), path)
        if isinstance(found, int | float):
            return float(found), f"{name}.json", note
    return None


def measured() -> dict[str, Figure]:
    """Return this machine's figures by short names."""
    job = ("figures", "preset s", "1,000,000 users"), ("figures", "preset xs", "1,000,000 users")
    wanted: dict[str, tuple[str, str, list[tuple[str, tuple[str, ...], str]]]] = {
        "baseline": ("a worker, baseline encoder", "events/s", [
            ("whole", ("figures", "full windows"), "catching up, full windows, some users several times a batch")]),
        "s": ("a worker, preset S on its CPU", "events/s", [
            ("job", job[0], "a window to encode for nearly every event"),
            ("encoder", ("onnx_windows_per_s", "value"), "windows of 64 encoded on two cores: an upper bound, and not of the whole job")]),
        "xs": ("a worker, preset XS on its CPU", "events/s", [("job", job[1], "")]),
        "gpu": ("a GPU, preset S, encoder alone", "events/s", [("cost", ("gpu", "preset s"), ""), ("encoder", ("gpu_windows_per_s", "value"), "")]),
        "stored": ("a user in RocksDB, window and profile", "bytes", [("disk", ("figures", "on disk"), "full window of 64 random events")]),
        "raw": ("a user's rows in the changelogs", "bytes", [("disk", ("figures", "before compression"), "not compressed")]),
        "profile": ("of these the profile in RocksDB", "bytes", [("disk", ("figures", "profiles on disk"), "")]),
        "restore": ("restoring", "rows/s", [("restore", ("figures", "rows/s"), "four tablets at once, one process")]),
        "tablet": ("memory of a tablet", "KiB", [("tablets", ("figures", "each", "KiB"), "the block cache is shared and extra")]),
        "handles": ("file handles of a tablet", "", [("tablets", ("figures", "each", "file handles"), "")]),
    }  # fmt: skip
    out = {}
    for short, (name, unit, places) in wanted.items():
        if (found := _first(*places)) is not None:
            out[short] = Figure(name, found[0], unit, found[1], found[2])
    return out


def plan(users: int, m: dict[str, float], a: Assumed) -> dict[str, float | None]:
    """Return the resources for a number of users. A value is None if its figure is not measured yet."""
    mean = users * a.active * a.events / DAY_S
    peak = mean * a.peak

    def workers(kind: str) -> float | None:
        return math.ceil(peak / (m[kind] * a.load)) if kind in m else None

    by_restore = math.ceil(users * 2 / (m["restore"] * a.restore_s))
    base = max(workers("baseline") or 1, by_restore, 2)
    most = max(base, workers("s") or 0)
    partitions = 2 ** math.ceil(math.log2(most * a.spread))
    compacted = users * m["raw"] * a.dirty * a.replication / GIB
    kept = mean * DAY_S * (a.json_bytes * a.platform_days + a.event_bytes * a.event_days) * a.replication / GIB
    written = peak * (a.json_bytes + a.event_bytes + m["raw"])
    return {
        "events/s, mean": mean,
        "events/s, peak": peak,
        "workers for the peak, baseline": workers("baseline"),
        "workers for the peak, preset S on CPUs": workers("s"),
        "workers for the peak, preset XS on CPUs": workers("xs"),
        "GPUs for the peak, preset S": workers("gpu"),
        f"workers, so that an emptied one is back in {a.restore_s:.0f} s": by_restore,
        "workers planned with the baseline": base,
        f"cells of at most {a.cell:.0f} workers, baseline": math.ceil(base / a.cell),
        "partitions of all cells, for the larger of baseline and S": partitions,
        "tablets a worker, at most, baseline": math.ceil(partitions / base),
        "memory of these, MiB": math.ceil(partitions / base) * m["tablet"] / 1024 if "tablet" in m else None,
        "file handles of these": math.ceil(partitions / base) * m["handles"] if "handles" in m else None,
        "users a partition": users / partitions,
        "seconds to restore one partition from nothing": users / partitions * 2 / m["restore"],
        "RocksDB of all workers, GiB": users * m["stored"] / GIB,
        "RocksDB a worker, baseline, GiB": users * m["stored"] / GIB / base,
        "items in the memory of each worker, GiB": a.items * a.item_bytes / GIB,
        "changelogs on all brokers, GiB": compacted,
        "event topics on all brokers, GiB": kept,
        "written to leaders at peak, MiB/s": written / 2**20,
        "of that to the changelogs": peak * m["raw"] / written,
        "between brokers at peak, MiB/s": written * (a.replication - 1) / 2**20,
        "a read replica of a whole cell, profiles, GiB": users * m["profile"] / GIB / math.ceil(base / a.cell) if "profile" in m else None,
    }


def _shown(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.2f}" if value < 10 and value != int(value) else f"{value:,.0f}"


def tables() -> str:
    """Return figures, assumptions and estimates as Markdown tables."""
    found, a = measured(), Assumed()
    out = ["| measured | figure | from | |", "|---|---|---|---|"]
    out += [f"| {f.name} | {f.value:,.0f} {f.unit} | `benchmarks/results/{f.source}` | {f.note} |" for f in found.values()]
    out += ["", "| assumed | | |", "|---|---|---|"]
    out += [f"| `{f.name}` | {getattr(a, f.name):,.10g} | {f.metadata['meaning']} |" for f in fields(a)]
    plans = [plan(users, {k: f.value for k, f in found.items()}, a) for users in USERS]
    out += ["", "| | " + " | ".join(f"{u:,} users" for u in USERS) + " |", "|---" * (1 + len(USERS)) + "|"]
    out += [f"| {name} | " + " | ".join(_shown(p[name]) for p in plans) + " |" for name in plans[0]]
    return "\n".join(out) + "\n"


def main(show: Callable[[str], None] = print) -> None:
    """Print the tables, then one JSON object."""
    show(tables())
    values = {k: f.value for k, f in measured().items()}
    show(orjson.dumps({"scale": {f"{u} users": plan(u, values, Assumed()) for u in USERS}}).decode())


if __name__ == "__main__":
    main()
