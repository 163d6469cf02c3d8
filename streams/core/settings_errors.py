"""What is said of a setting that cannot be used: file, key, value, what was expected, the nearest key that there is. Never the value of a secret."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

SECRET = re.compile("pass|secret|token|credential", re.IGNORECASE)
"""Keys whose values are never shown."""
_USER = re.compile(r"(\w://[^/@\s:'\"]*):[^/@\s]+@")
_SIGNED = re.compile(r"([?&](?:[\w-]*(?:sig|signature|token|secret|password|key|credential)[\w-]*)=)[^&\s'\"]+", re.IGNORECASE)


def masked(text: str) -> str:
    """A text with the credentials of its URLs masked: passwords before the host, tokens and signatures after `?`."""
    return _SIGNED.sub(r"\1***", _USER.sub(r"\1:***@", text))


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint at the known key that is most like one that is not; empty where none is."""
    found = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


def say(error: Mapping[str, Any], where: str, values: Mapping[str, Any], model: type[BaseModel]) -> str:
    """An error of pydantic's as one line. `where`: the file; `values`: what was read from it, with the names of platforms."""
    loc: Sequence[int | str] = error["loc"]
    key, value = named(loc, values), error.get("input")
    if error["type"] == "extra_forbidden":  # its value is not shown: it may be a password under a name that nobody knows
        return f"{where}: {key}: unknown key{nearest(str(loc[-1]), keys(model, loc[:-1]))}"
    hidden = isinstance(value, Mapping | BaseModel) or any(SECRET.search(str(part)) for part in loc)
    shown = "" if hidden else f" = {masked(repr(value)):.100}"
    return f"{where}: {key}{shown}: {masked(error['msg'])}"


def named(loc: Sequence[int | str], values: Mapping[str, Any]) -> str:
    """A place in the settings as a person calls it: platforms by their names, others of a list by their number, counted from 1."""
    parts: list[str] = []
    for n, part in enumerate(loc):
        name = values.get("platforms", ())[part].get("name") if n == 1 and loc[0] == "platforms" and isinstance(part, int) else None
        if isinstance(name, str) and name:
            parts.append(f".{name}")
        else:
            parts.append(f"[{part + 1}]" if isinstance(part, int) else f".{part}")
    return "".join(parts).removeprefix(".") or "settings"


def keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys that there are at a place of the settings."""
    models = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        below = [
            found for m in models for name, field in m.model_fields.items() if part in (name, field.alias) for found in _models(field.annotation)
        ]
        models = below or models  # a tag that pydantic adds for one kind of several
    return [field.alias or name for m in models for name, field in m.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The tables that a type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]
