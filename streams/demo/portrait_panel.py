"""Renders a user's named interests in a terminal. Imports no worker, so that `currents query` needs no stream engine."""

import time

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schemas.profiles import Interest, Profile
from streams.core.printable import printable

BAR = 28  # characters of a full bar


def portrait(profile: Profile | None, user: str, expand: bool = True) -> RenderableType:
    """Render a user's named interests: weight, trend, platforms, evidence. `expand`: use the terminal's width."""
    if profile is None:
        return _panel(Text("no events yet"), user, expand)
    table = Table(box=None, padding=(0, 1), show_header=False)
    for interest in profile.interests[:8]:
        bar = Text("█" * max(1, round(interest.weight * BAR)), style="cyan")
        shares = " ".join(f"{printable(name)} {share:.0%}" for name, share in sorted(interest.platforms.items(), key=lambda p: -p[1]))
        evidence = printable(f"{interest.evidence[0].behavior} {interest.evidence[0].title}") if interest.evidence else ""
        name, weight = Text(printable(interest.name)), f"{interest.weight:.0%}"
        table.add_row(name, bar, weight, arrow(interest), Text(shares, style="dim"), Text(evidence[:48], style="dim"))
    age = max(0, time.time_ns() // 1_000_000 - profile.updated_at)
    return _panel(table, f"{user}: {profile.events} events, updated {age / 1000:.1f} s ago", expand)


def _panel(content: RenderableType, title: str, expand: bool) -> Panel:
    return Panel(content, title=Text(printable(title)), title_align="left", expand=expand)


def arrow(interest: Interest) -> Text:
    """Return the arrow of an interest's trend: up or down beyond 0.05, else a dot."""
    if interest.trend > 0.05:
        return Text("▲", style="green")
    return Text("▼", style="red") if interest.trend < -0.05 else Text("·", style="dim")
