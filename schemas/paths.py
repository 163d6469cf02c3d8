"""Paths into JSON: `a.b.c`, `items[0].id`, `orders[*].lines[*].id`, `params[key=page].value`, and `"dotted.key".x`."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

MISSING: Any = object()
_SEGMENT = re.compile(r'(?:"(?P<quoted>[^"]+)"|(?P<plain>[^."\[\]]+))(?P<brackets>(?:\[[^\[\]]+\])*)(?:\.|$)')
_BRACKET = re.compile(r"\[([^\[\]]+)\]")


class Select(NamedTuple):
    """The first object of an array whose `key` is `value`."""

    key: str
    value: str


Step = str | int | Select
Get = Callable[[Any], Any]


class Path(NamedTuple):
    """A compiled path: the arrays that it goes through whole, each reached from an element of the one before, and the steps that are left then."""

    text: str
    arrays: tuple[tuple[Step, ...], ...]
    steps: tuple[Step, ...]


def parse(text: str) -> Path:
    """Text -> Path. Raises ValueError saying what was expected."""
    steps: list[Step | None] = []
    at = 0
    while at < len(text):
        found = _SEGMENT.match(text, at)
        if found is None or (found.end() == len(text) and text.endswith(".")):
            raise ValueError(f"path {text!r}: want keys joined by dots, each with [0], [*] or [key=value], at {text[at:]!r}")
        steps.append(found["quoted"] or found["plain"])
        steps += map(_bracket, _BRACKET.findall(found["brackets"]))
        at = found.end()
    if not steps:
        raise ValueError("path '': want at least one key")
    parts: list[list[Step]] = [[]]
    for step in steps:
        if step is None:
            parts.append([])
        else:
            parts[-1].append(step)
    return Path(text, tuple(map(tuple, parts[:-1])), tuple(parts[-1]))


def _bracket(text: str) -> Step | None:
    if text == "*":
        return None
    if text.lstrip("-").isdigit():
        return int(text)
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"[{text}]: want a number, * or key=value")
    return Select(key, value)


def getter(steps: tuple[Step, ...]) -> Get:
    """A function from a JSON value to what the steps lead to, or MISSING."""
    if not steps:
        return lambda doc: doc
    if len(steps) == 1 and isinstance(steps[0], str):
        only = steps[0]
        return lambda doc: doc.get(only, MISSING) if type(doc) is dict else MISSING
    if len(steps) == 2 and isinstance(steps[0], str) and isinstance(steps[1], str):
        first, second = steps

        def get_two(doc: Any) -> Any:
            inner = doc.get(first) if type(doc) is dict else None
            return inner.get(second, MISSING) if type(inner) is dict else MISSING

        return get_two

    def get(doc: Any) -> Any:
        for step in steps:
            doc = _take(doc, step)
            if doc is MISSING:
                return MISSING
        return doc

    return get


def _take(doc: Any, step: Step) -> Any:
    if type(step) is str:
        return doc.get(step, MISSING) if type(doc) is dict else MISSING
    if type(doc) is not list:
        return MISSING
    if type(step) is int:
        return doc[step] if -len(doc) <= step < len(doc) else MISSING
    if isinstance(step, Select):
        return next((d for d in doc if type(d) is dict and _is(d.get(step.key), step.value)), MISSING)
    return MISSING


def spelled(value: Any) -> str:
    """A JSON scalar as text, booleans and null as JSON spells them."""
    return value if type(value) is str else "null" if value is None else str(value).lower() if type(value) is bool else str(value)


def _is(value: Any, wanted: str) -> bool:
    return type(value) not in (dict, list) and wanted in (spelled(value), str(value))


def everything(arrays: tuple[tuple[Step, ...], ...], steps: tuple[Step, ...]) -> Callable[[Any], list[Any]]:
    """A function from a JSON value to all that a path through arrays leads to."""
    into, last = [getter(a) for a in arrays], getter(steps)

    def get(doc: Any) -> list[Any]:
        level = [doc]
        for array in into:
            level = [e for v in level if type(found := array(v)) is list for e in found]
        return [found for v in level if (found := last(v)) is not MISSING]

    return get
