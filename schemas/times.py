"""Times as platforms write them -> ms since the epoch."""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

TimeFormat = Literal["s", "ms", "us", "ns", "iso8601", "rfc2822", "auto"]
Time = Callable[[Any], int]
"""A JSON value -> ms since the epoch. Raises ValueError, TypeError or OverflowError on what is no time."""
MAX_TIME = 80  # characters of a time as text
UNIT_MS = {"s": 1000.0, "ms": 1.0, "us": 0.001, "ns": 0.000_001}
_ZONE = re.compile(r"(?P<time>.*?)\s*\[(?P<zone>[A-Za-z0-9_+/-]{1,40})\]")
_UTC = re.compile(r"\s*(?:UTC|GMT|Z)$", re.I)
_DIGITS = re.compile(r"(?<=\.\d{6})\d+")


class RecordTime(int):
    """The time of a Kafka record, ms: read as it is, whatever the mapping's format."""


def _number(to_ms: float) -> Time:
    def read(time: Any) -> int:
        if type(time) is int:
            return time if to_ms == 1.0 else round(time * to_ms)
        return round((float(time) if type(time) in (str, float) else math.nan) * to_ms)

    return read


def _nanoseconds(time: Any) -> int:
    if type(time) is str and time.isdigit() and len(time) < MAX_TIME:
        time = int(time)
    return (time + 500_000) // 1_000_000 if type(time) is int else _number(UNIT_MS["ns"])(time)


def iso8601(time: Any) -> int:
    """ISO 8601 and RFC 3339 and what is written like them: lower case, `… UTC`, `…[Europe/Berlin]`; UTC where there is no zone."""
    try:
        return _ms(datetime.fromisoformat(time))
    except ValueError:
        return _ms(_careful(time))


def rfc2822(time: Any) -> int:
    """The date of mails and HTTP: `Fri, 01 Mar 2024 10:00:00 GMT`."""
    if type(time) is not str or len(time) > MAX_TIME:
        raise ValueError("not a date")
    try:
        return _ms(parsedate_to_datetime(time))
    except (IndexError, AttributeError):  # what the standard library raises on some texts
        raise ValueError("not a date") from None


def auto(time: Any) -> int:
    """Numbers in the unit that puts them between 1973 and 5138; text as ISO 8601, else as the date of a mail."""
    if type(time) is str:
        number = time.strip().lstrip("-")
        if not number.replace(".", "", 1).isdecimal() or len(number) > MAX_TIME or len(number) == _COMPACT:
            try:
                return iso8601(time)
            except ValueError:
                return rfc2822(time)
    size = abs(float(time) if type(time) in (int, float, str) else math.nan)
    return _FORMATS[next((unit for unit, below in _BELOW.items() if size < below), "ns")](time)


_COMPACT = 8  # digits of a date such as 20240301
_BELOW = {"s": 1e11, "ms": 1e14, "us": 1e17}
_FORMATS: dict[str, Time] = {
    **{unit: _number(to_ms) for unit, to_ms in UNIT_MS.items()},
    "ns": _nanoseconds,
    "iso8601": iso8601,
    "rfc2822": rfc2822,
    "auto": auto,
}


def reader(time_format: str) -> Time:
    """What reads the times of a mapping. The time of a record, and MongoDB's `{"$date": …}`, are read in every format."""
    read = _FORMATS[time_format]

    def read_any(time: Any) -> int:
        kind = type(time)
        if kind is str or kind is int:
            return read(time)
        if kind is RecordTime:
            return int(time)
        return _mongo(time) if kind is dict else read(time)

    return read_any


def hint(time: Any, low_ms: int, high_ms: int) -> str:
    """What a number that is no time in its unit would be in another, where that is between the bounds; else nothing."""
    try:
        number = float(time) if type(time) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        return ""
    for unit, to_ms in UNIT_MS.items():
        ms = number * to_ms
        if max(low_ms, 1) <= ms <= high_ms:
            at = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms < _LAST_MS else "later"
            return f'; in {unit} it would be {at}: time_format = "{unit}"?'
    return ""


_LAST_MS = 253_402_300_000_000


def _ms(at: datetime) -> int:
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _careful(time: str) -> datetime:
    """What `fromisoformat` of the standard library refuses. Raises ValueError."""
    text = time.strip()
    if len(text) > MAX_TIME:
        raise ValueError("not a time")
    zone: ZoneInfo | None = None
    if named := _ZONE.fullmatch(text):
        text = named["time"]
        try:
            zone = ZoneInfo(named["zone"])
        except (OSError, KeyError):  # no such zone, or a folder of zones
            raise ValueError(f"no zone {named['zone']}") from None
    text = _DIGITS.sub("", _UTC.sub("+00:00", text).upper())
    # Space before an offset, as in "10:00:00 +01:00"; and a leap second, which is the next one.
    text = re.sub(r"\s+(?=[+-]\d\d:?\d{0,2}$)", "", text)
    leap = re.search(r":60(?=[.+-]|$)", text)
    at = datetime.fromisoformat(text[: leap.start()] + ":59" + text[leap.end() :] if leap else text)
    return at.replace(tzinfo=zone) if zone and at.tzinfo is None else at


def _mongo(time: dict[str, Any]) -> int:
    """MongoDB's Extended JSON: `{"$date": "2024-…Z"}`, `{"$date": ms}`, `{"$date": {"$numberLong": "ms"}}`."""
    date = time.get("$date")
    if type(date) is dict:
        date = date.get("$numberLong")
    if type(date) is str and not date.lstrip("-").isdigit():
        return iso8601(date)
    return _number(1.0)(date)
