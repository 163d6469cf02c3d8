"""The check that Currents makes of itself: stored windows against the offline fold of the whole log."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from schemas.events import BEHAVIORS, Event, decode_event
from schemas.items import item_name
from schemas.windows import STRONG, VERSION, Policy, row_of


def latest(records: Iterable[Any]) -> dict[bytes, bytes]:
    """What a compacted topic says: the last value of each key, without the erased."""
    rows = {r.key: r.value for r in records}
    return {k: v for k, v in rows.items() if v is not None}


def offline_windows(log: Iterable[Any], names: Mapping[int, str], policy: Policy) -> tuple[dict[bytes, bytes], int]:
    """Windows as sorting the whole log gives them, and how many events of the log were duplicates. Written apart from the fold on purpose."""
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
    """The newest of all, of each platform, and of the strong rows; oldest first."""
    newest = sorted(rows, reverse=True)
    kept = set(newest[: policy.overall])
    for code in {platform for _, _, platform in newest}:
        kept.update([k for k in newest if k[2] == code][: policy.per_platform])
    kept.update([k for k in newest if rows[k][0]][: policy.strong])
    return sorted(kept)


def wrong(expected: Mapping[bytes, bytes], found: Mapping[bytes, bytes]) -> int:
    """Users whose window is missing, other, or should not be."""
    return sum(expected.get(u) != found.get(u) for u in expected.keys() | found.keys())
