"""Numbers and durations as platforms write them: money with signs and separators, ISO 8601 durations, clock times."""

import math
import re
from collections.abc import Callable
from typing import Any, Literal

NumberFormat = Literal["plain", "currency", "currency-comma"]
Number = Callable[[Any], float]
"""A JSON value -> a float. Raises ValueError, TypeError or OverflowError on what is no number."""
MAX_NUMBER = 64  # characters of a number as text
_MONEY = re.compile(r"(?P<before>\(?[^\d.,()-]*)(?P<sign>-?)[^\d.,()-]*(?P<digits>\d[\d.,'’\s]*|[.,]\d+)[^\d.,()-]*(?P<after>\)?)")
_DURATION = re.compile(
    r"P(?=.)(?:(\d+(?:[.,]\d+)?)W)?(?:(\d+(?:[.,]\d+)?)D)?(?:T(?=.)(?:(\d+(?:[.,]\d+)?)H)?(?:(\d+(?:[.,]\d+)?)M)?(?:(\d+(?:[.,]\d+)?)S)?)?", re.I
)
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,9})?)")
_DURATION_S = (604_800.0, 86_400.0, 3_600.0, 60.0, 1.0)


def plain(value: Any) -> float:
    """A JSON number, or a number as text with a point."""
    if type(value) is float or type(value) is int or type(value) is str:
        return float(value)
    return math.nan


def currency(value: Any) -> float:
    """`$1,299.00`, `1.299,00 €`, `12,5`, `(3.50)`: the last of two separators is the decimal one; a single comma before three digits is not."""
    return _money(value, decimal_comma=False)


def currency_comma(value: Any) -> float:
    """As `currency`, where a single separator before three digits is read as in `1.299 €`: points group, a comma is decimal."""
    return _money(value, decimal_comma=True)


FORMATS: dict[str, Number] = {"plain": plain, "currency": currency, "currency-comma": currency_comma}


def _money(value: Any, decimal_comma: bool) -> float:
    if type(value) is not str:
        return plain(value)
    if not decimal_comma:
        try:
            return float(value)
        except ValueError:
            pass
    found = _MONEY.fullmatch(value.strip()) if len(value) <= MAX_NUMBER else None
    if found is None or (found["before"].startswith("(")) != (found["after"] == ")"):
        raise ValueError("not an amount")
    digits = re.sub(r"[\s'’]", "", found["digits"])
    number = float(_pointed(digits, decimal_comma))
    return -number if found["sign"] or found["after"] else number


def _pointed(digits: str, decimal_comma: bool) -> str:
    """Digits with any separators -> digits with a decimal point at most."""
    comma, point = digits.rfind(","), digits.rfind(".")
    if comma >= 0 and point >= 0:
        decimal, group = (",", ".") if comma > point else (".", ",")
        if digits.count(decimal) > 1:
            raise ValueError("two decimal separators")
        return digits.replace(group, "").replace(decimal, ".")
    if comma < 0 and point < 0:
        return digits
    one = "," if comma >= 0 else "."
    groups = re.fullmatch(rf"\d{{1,3}}(?:\{one}\d{{3}})+", digits)
    if groups and (digits.count(one) > 1 or (one == ",") != decimal_comma):
        return digits.replace(one, "")
    if digits.count(one) > 1:
        raise ValueError("two decimal separators")
    return digits.replace(one, ".")


def duration_s(text: Any) -> float:
    """An ISO 8601 duration in weeks, days and times (`PT45.2S`), or a clock time (`1:30`, `00:01:30.5`) -> seconds. Raises ValueError."""
    if type(text) is not str or len(text) > MAX_NUMBER:
        raise ValueError("not a duration")
    found = _DURATION.fullmatch(text.strip())
    if found:
        return sum(unit * float(n.replace(",", ".")) for unit, n in zip(_DURATION_S, found.groups(), strict=True) if n)
    clock = _CLOCK.fullmatch(text.strip())
    if clock is None:
        raise ValueError("not a duration")
    hours, minutes, seconds = clock.groups()
    return int(hours or 0) * 3600.0 + int(minutes) * 60.0 + float(seconds.replace(",", "."))
