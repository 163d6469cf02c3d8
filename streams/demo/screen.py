"""The demo's screen: the worker's figures and one user's interests."""

import time
from urllib.parse import quote

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schemas.profiles import Profile, decode_profile
from streams.core.printable import printable
from streams.demo.portrait_panel import portrait
from streams.processes.worker import Worker
from streams.transport.sender import partition_of


def draw(worker: Worker, user: str, sent: int, started: float) -> RenderableType:
    """Render the whole screen. `sent`: events sent since `started` (monotonic seconds)."""
    curl = f"curl {worker.url}/v1/profiles/{quote(user, safe='')}"
    return Group(_figures(worker, sent, started), portrait(find(worker, user), user), Text(f"{worker.url}/docs\n{curl}", style="dim"))


def find(worker: Worker, user: str) -> Profile | None:
    """Return a user's stored profile, None if this worker has none."""
    tablet = worker.tablets.get(partition_of(user.encode(), worker.settings.worker.partitions))
    found = tablet.profile(user.encode()) if tablet else None
    return decode_profile(found) if found else None


def _figures(worker: Worker, sent: int, started: float) -> RenderableType:
    value, elapsed = worker.metrics.value, max(time.monotonic() - started, 1e-9)
    p50, p99 = worker.metrics.age.percentiles(50, 99)
    table = Table.grid(padding=(0, 3))
    table.add_row("events sent", f"{sent:,}", "events/s", f"{sent / elapsed:,.0f}")
    table.add_row("unified", f"{value('currents_events_total'):,.0f}", "folded", f"{value('currents_folded_total'):,.0f}")
    table.add_row("event → profile, p50", f"{p50:.0f} ms", "p99", f"{p99:.0f} ms")
    table.add_row("items", f"{worker.store.table.size - 1:,}", "not yet handled", f"{worker.backlog.records():,.0f}")
    table.add_row("encoder", Text(printable(worker.encoder.version)))
    reasons: dict[str, float] = {}
    for family in worker.metrics.dead.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                reasons[sample.labels["reason"]] = reasons.get(sample.labels["reason"], 0) + sample.value
    dead = "  ".join(f"{reason} {n:.0f}" for reason, n in sorted(reasons.items(), key=lambda r: -r[1])) or "none"
    return Panel(Group(table, Text(f"dead letters: {dead}", style="yellow")), title="Currents", title_align="left")
