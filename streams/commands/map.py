"""`currents map`: a mapping tried on the first lines of a file, as a worker would, without Kafka."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from schemas.events import BEHAVIORS, Event
from schemas.formats import framed
from schemas.items import Item
from schemas.mapping import Deleted, Mapper, Metadata, Rejected
from streams.commands.terminal import out
from streams.commands.terminal import show as show_drawn
from streams.core.errors import SettingsError
from streams.core.printable import printable
from streams.core.settings import Settings

SHOWN = 80  # characters of an example


@dataclass
class Tried:
    """What the records of a file became."""

    records: int = 0
    events: list[Event] = field(default_factory=list)
    items: list[Item | Deleted] = field(default_factory=list)
    filtered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)
    """Reason -> line, detail and value of the first record that was rejected for it."""


def mapper_of(settings: Settings, platform: str) -> Mapper:
    """The mapper of a platform. Raises SettingsError naming those that there are."""
    from streams.ingest.normalise import mappers

    known = mappers(settings)
    if platform not in known:
        wanted = ", ".join(known) or "none; add [[platforms]] to the settings file"
        raise SettingsError(f"--platform {platform}: not in the settings, want one of {wanted}")
    return known[platform]


def records_of(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines that hold something; a file that is one framed value is one record."""
    for n, line in enumerate(lines):
        value = line.rstrip(b"\r\n")
        if n == 0 and framed(value) is not None:
            yield line + b"".join(lines)
            return
        if value.strip():
            yield value


def tried(lines: Iterable[bytes], mapper: Mapper, items: bool, limit: int) -> Tried:
    """The first records, mapped; each gets the present time as that of its record."""
    found = Tried()
    now_ms = time.time_ns() // 1_000_000
    record = Metadata(now_ms)
    for number, value in enumerate(itertools.islice(records_of(lines), limit or None), 1):
        found.records += 1
        made: list[Any] | Rejected = mapper.items(value, record) if items else mapper.events(value, "", 0, number, now_ms, record)
        if isinstance(made, Rejected):
            found.reasons[made.reason] += 1
            found.examples.setdefault(made.reason, (number, made.detail, value))
            continue
        found.filtered += not made
        (found.items if items else found.events).extend(made)
    found.left_out += mapper.left_out
    return found


def rows(found: Tried) -> Iterator[dict[str, Any]]:
    """Events, or items, as rows of a table."""
    for e in found.events:
        at = datetime.fromtimestamp(e.ts_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        row = {"user": e.user_id, "behavior": BEHAVIORS[e.behavior], "item": e.item_id, "time": at, "value": e.value, "dwell_s": e.dwell_s}
        yield {**row, "event_id": f"{e.event_id:016x}"}
    for i in found.items:
        if isinstance(i, Deleted):
            yield {"item": i.item, "title": "(deleted)", "categories": [], "text": ""}
        else:
            yield {"item": i.item, "title": i.title, "categories": list(i.categories), "text": i.text}


def summary(found: Tried) -> dict[str, Any]:
    """Counts, and an example of each reason."""
    examples = {
        reason: {"line": line, "detail": detail, "value": value[:SHOWN].decode("utf-8", "backslashreplace")}
        for reason, (line, detail, value) in found.examples.items()
    }
    return {
        "records": found.records,
        "events": len(found.events),
        "items": len(found.items),
        "filtered": found.filtered,
        "dead_letters": dict(found.reasons.most_common()),
        "left_out": dict(found.left_out),
        "examples": examples,
    }


def show(found: Tried) -> None:
    """Rows and counts on the terminal. Text of records is shown as it is: no markup, control characters escaped."""
    table: Table | None = None
    for row in rows(found):
        if table is None:
            table = Table(*row, box=None)
        table.add_row(*(_cell(v) for v in row.values()))
    if table is not None:
        show_drawn(table)
    s = summary(found)
    made = f"{s['items']:,} items" if found.items else f"{s['events']:,} events"
    out.print(f"{s['records']:,} records: {made}, {s['filtered']:,} left out on purpose, {found.reasons.total():,} dead letters", highlight=False)
    for reason, n in found.left_out.items():
        out.print(f"left out of events: {n:,} fields ({reason})", highlight=False)
    for reason, n in found.reasons.most_common():
        example = s["examples"][reason]
        out.print(_cell(f"{reason}: {n:,}, such as line {example['line']}: {example['detail']}"), soft_wrap=True)
        out.print(_cell(f"  {example['value']}"), soft_wrap=True)


def _cell(value: Any) -> Text:
    text = "" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
    return Text(printable(text))
