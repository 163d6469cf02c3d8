"""Compares stored windows with an offline fold of the whole log."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from schemas.events import BEHAVIORS, Event, decode_event
from schemas.items import item_name
from schemas.windows import STRONG, VERSION, Policy, row_of


def latest(records: Iterable[Any]) -> dict[bytes, bytes]:
    """Return the state of a compacted topic: the last value of each key, without keys whose last value is null."""
    rows = {r.key: r.value for r in records}
    return {k: v for k, v in rows.items() if v is not None}


def offline_windows(log: Iterable[Any], names: Mapping[int, str], policy: Policy) -> tuple[dict[bytes, bytes], int]:
    """Compute each user's window by sorting the whole log. Returns the windows, and the number of duplicate events in the log.

    The code shares nothing with `schemas.windows.fold`, so that an error in the fold shows.
    """
    quotas = policy.per_platform > 0 or policy.strong > 0
    rows: dict[bytes, dict[_Key, _Row]] = defaultdict(dict)
    duplicates = 0
    for record in log:
        event: Event = decode_event(record.value)
        strong = quotas and BEHAVIORS[event.behavior] in STRONG
        row = strong, row_of(event, item_name(names[event.platform], event.item_id))
        key = event.ts_ms, event.event_id, event.platform if quotas else 0
        mine = rows[record.key]
        duplicates += key in mine
        mine[key] = max(row, mine.get(key, row))
    return {user: VERSION + b"".join(mine[k][1] for k in _kept(mine, policy)) for user, mine in rows.items()}, duplicates


_Key = tuple[int, int, int]
"""(ts_ms, event_id, platform)"""
_Row = tuple[bool, bytes]
"""(strong, row)"""


def _kept(rows: Mapping[_Key, _Row], policy: Policy) -> list[_Key]:
    """Return the keys of rows that the policy keeps, oldest first: the newest rows overall, of each platform, and with strong behaviors."""
    newest = sorted(rows, reverse=True)
    kept = set(newest[: policy.overall])
    for code in {platform for _, _, platform in newest}:
        kept.update([k for k in newest if k[2] == code][: policy.per_platform])
    kept.update([k for k in newest if rows[k][0]][: policy.strong])
    return sorted(kept)


def wrong(expected: Mapping[bytes, bytes], found: Mapping[bytes, bytes]) -> int:
    """Number of users whose window is missing, different or unexpected."""
    return sum(expected.get(u) != found.get(u) for u in expected.keys() | found.keys())
