"""Fields of a mapping, compiled: from a document, and an element of its array, to a value."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from schemas.declaration import Filter
from schemas.formats import FormatError, Loads
from schemas.metadata import from_base64
from schemas.paths import MISSING, Get, Path, everything, getter, parse, spelled

Field = Callable[[Any, Any], Any]
"""(document, element) -> value or MISSING. The element is MISSING where there is no array, and a tuple of one for each [*] where several follow."""
Condition = Callable[[Any, Any], bool]
Rewrite = Callable[[dict[str, Any], Loads], None]
Arrays = tuple[tuple[Any, ...], ...]


def first(paths: Sequence[str], levels: int, none: frozenset[str] = frozenset()) -> Field:
    """The first of several paths that is there, not null, not empty and none of the values that mean none. `levels`: [*] of the mapping."""
    compiled = [_one(parse(p), levels) for p in paths]
    if not compiled:
        return lambda doc, element: MISSING
    if len(compiled) == 1 and not none and not parse(paths[0]).arrays:
        only = getter(parse(paths[0]).steps)
        return lambda doc, element: only(doc)
    if none:
        return _first_of_some(compiled, none)

    def get_first(doc: Any, element: Any) -> Any:
        for inside, get in compiled:
            if inside and element is MISSING:
                continue
            value = get(element if inside else doc)
            if value is not MISSING and value is not None and value != "":
                return value
        return MISSING

    return get_first


def _one(path: Path, levels: int) -> tuple[bool, Get]:
    """Whether a path begins at an element, and what it leads to from there."""
    get = getter(path.steps)
    if levels < 2 or not path.arrays:
        return bool(path.arrays), get
    at = len(path.arrays) - 1
    return True, lambda elements: get(elements[at])


def _first_of_some(compiled: list[tuple[bool, Get]], none: frozenset[str]) -> Field:
    def get_first(doc: Any, element: Any) -> Any:
        for inside, get in compiled:
            if inside and element is MISSING:
                continue
            value = get(element if inside else doc)
            if value is not MISSING and value is not None and value != "" and not means_none(value, none):
                return value
        return MISSING

    return get_first


def means_none(value: Any, none: frozenset[str]) -> bool:
    """Whether a scalar is one of the values that mean none, in whatever case."""
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return type(value) in (str, int, float, bool) and spelled(value).strip().casefold() in none


def none_of(values: Sequence[Any]) -> frozenset[str]:
    """Values that mean none, as `means_none` compares them."""
    return frozenset(spelled(v).strip().casefold() for v in values)


def condition(f: Filter, levels: int, none: frozenset[str] = frozenset()) -> Condition:
    """Whether a document, or an element, passes."""
    get = first(f.path, levels, none)
    if f.exists is not None:
        return lambda doc, element: (get(doc, element) not in (MISSING, None)) == f.exists
    wanted = f.one_of if f.one_of is not None else f.none_of if f.none_of is not None else (f.equals,)
    negative = f.none_of is not None
    return lambda doc, element: (get(doc, element) in wanted) != negative


def elements(arrays: Arrays) -> Callable[[Any], list[tuple[str, Any]]]:
    """From a document to the elements of its array with their places; empty where there is no array. Several [*]: see Field."""
    into = [getter(a) for a in arrays]
    if len(into) == 1:
        only = into[0]

        def one(doc: Any) -> list[tuple[str, Any]]:
            found = only(doc)
            return [(str(i), e) for i, e in enumerate(found)] if type(found) is list else []

        return one

    def walk(value: Any, level: int, index: str, above: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
        if level == len(into):
            yield index, above
            return
        found = into[level](value)
        if type(found) is not list or not found:
            if level:
                yield index, above + (MISSING,) * (len(into) - level)
            return
        for i, e in enumerate(found):
            yield from walk(e, level + 1, f"{index}.{i}" if index else str(i), (*above, e))

    return lambda doc: list(walk(doc, 0, "", ()))


def texts(path: str, arrays: Arrays, separator: str | None) -> Callable[[Any, Any], list[str]]:
    """All text that a path leads to, through every [*]; from the element where the path begins with the array that makes several items."""
    parsed = parse(path)
    inside = bool(arrays) and parsed.arrays[: len(arrays)] == arrays
    get = everything(parsed.arrays[len(arrays) :] if inside else parsed.arrays, parsed.steps)
    several = len(arrays) > 1

    def read(doc: Any, element: Any) -> list[str]:
        if inside:
            if element is MISSING:
                return []
            doc = element[-1] if several else element
        return [s for v in get(doc) for s in strings(v, separator)]

    return read


_NAMES = ("name", "title", "label", "term", "value", "slug")


def strings(value: Any, separator: str | None) -> list[str]:
    """Text, or a list of texts or of objects with a name, as a list."""
    if type(value) is str:
        return value.split(separator) if separator else [value]
    if type(value) is dict:
        named = next((v for n in _NAMES if (v := value.get(n)) is not None and v != ""), None)
        return strings(named, separator)
    return [s for v in value for s in strings(v, separator)] if type(value) is list else []


def rewrites(from_base64_paths: Sequence[str], from_json_paths: Sequence[str]) -> list[Rewrite]:
    """What replaces text in a document by what it holds: base64 first, then JSON."""
    return [_rewrite(p, _base64) for p in from_base64_paths] + [_rewrite(p, _json) for p in from_json_paths]


def _rewrite(path: str, change: Callable[[str, Loads], Any]) -> Rewrite:
    *before, end = parse(path).steps
    parent, last = getter(tuple(before)), cast(Any, end)

    def apply(doc: dict[str, Any], loads: Loads) -> None:
        holder = parent(doc)
        if type(holder) is (dict if type(last) is str else list):
            try:
                text = holder[last]
            except (KeyError, IndexError, TypeError):
                return
            if type(text) is str and text:
                holder[last] = change(text, loads)

    return apply


def _base64(text: str, loads: Loads) -> Any:
    """What base64 holds: JSON, or text; other text stays as it is."""
    data = from_base64(text)
    if data is None:
        return text
    try:
        return loads(data)
    except FormatError as error:
        if error.reason == "too-deep":
            raise
        return data.decode("utf-8", "replace")


def _json(text: str, loads: Loads) -> Any:
    """What JSON in text holds; other text stays as it is."""
    try:
        return loads(text)
    except FormatError as error:
        if error.reason == "too-deep":
            raise
        return text
