"""One user's named interests in a terminal. Knows profiles, no worker: `currents query` shows it without the stream engine."""

import time

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schemas.profiles import Interest, Profile

BAR = 28  # characters of a full bar


def portrait(profile: Profile | None, user: str) -> RenderableType:
    """One user's named interests: weight, trend, platforms, evidence."""
    if profile is None:
        return Panel(Text("no events yet"), title=user, title_align="left")
    table = Table(box=None, padding=(0, 1), show_header=False)
    for interest in profile.interests[:8]:
        bar = Text("█" * max(1, round(interest.weight * BAR)), style="cyan")
        shares = " ".join(f"{name} {share:.0%}" for name, share in sorted(interest.platforms.items(), key=lambda p: -p[1]))
        shown = f"{interest.evidence[0].behavior} {interest.evidence[0].title}" if interest.evidence else ""
        table.add_row(interest.name, bar, f"{interest.weight:.0%}", arrow(interest), Text(shares, style="dim"), Text(shown[:48], style="dim"))
    age = max(0, time.time_ns() // 1_000_000 - profile.updated_at)
    return Panel(table, title=f"{user}: {profile.events} events, updated {age / 1000:.1f} s ago", title_align="left")


def arrow(interest: Interest) -> Text:
    """Where an interest goes: the newer half of the window against the older."""
    if interest.trend > 0.05:
        return Text("▲", style="green")
    return Text("▼", style="red") if interest.trend < -0.05 else Text("·", style="dim")
