"""Messages for invalid settings: file, key, value, expected value, nearest known key. A message never has the value of a secret."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

SECRET = re.compile("pass|secret|token|credential", re.IGNORECASE)
"""Pattern of keys whose values are never shown."""
_USER = re.compile(r"(\w://[^/@\s:'\"]*):[^/@\s]+@")
_SIGNED = re.compile(r"([?&](?:[\w-]*(?:sig|signature|token|secret|password|key|credential)[\w-]*)=)[^&\s'\"]+", re.IGNORECASE)


def masked(text: str) -> str:
    """Mask the credentials of URLs in a text: passwords before the host, tokens and signatures after `?`."""
    return _SIGNED.sub(r"\1***", _USER.sub(r"\1:***@", text))


def nearest(key: str, known: Iterable[str]) -> str:
    """Return a hint at the known key most similar to an unknown key; empty if none is similar."""
    found = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


def say(error: Mapping[str, Any], where: str, values: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Format a pydantic error as one line. `where`: the file; `values`: its content, which has the names of platforms."""
    loc: Sequence[int | str] = error["loc"]
    key, value = named(loc, values), error.get("input")
    if error["type"] == "extra_forbidden":  # no value: it may be a password under an unknown key
        return f"{where}: {key}: unknown key{nearest(str(loc[-1]), keys(model, loc[:-1]))}"
    hidden = isinstance(value, Mapping | BaseModel) or any(SECRET.search(str(part)) for part in loc)
    shown = "" if hidden else f" = {masked(repr(value)):.100}"
    return f"{where}: {key}{shown}: {masked(error['msg'])}"


def named(loc: Sequence[int | str], values: Mapping[str, Any]) -> str:
    """Return a readable path of a setting. Platforms appear by name, elements of other lists by their number from 1."""
    parts: list[str] = []
    for n, part in enumerate(loc):
        name = values.get("platforms", ())[part].get("name") if n == 1 and loc[0] == "platforms" and isinstance(part, int) else None
        if isinstance(name, str) and name:
            parts.append(f".{name}")
        else:
            parts.append(f"[{part + 1}]" if isinstance(part, int) else f".{part}")
    return "".join(parts).removeprefix(".") or "settings"


def keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Return the known keys at a path of the settings."""
    models = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        below = [
            found for m in models for name, field in m.model_fields.items() if part in (name, field.alias) for found in _models(field.annotation)
        ]
        models = below or models  # a tag that pydantic adds for a member of a union
    return [field.alias or name for m in models for name, field in m.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models that occur in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]
