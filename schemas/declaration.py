"""How a platform's JSON is declared in the settings. `docs/mappings.md` explains every key."""

import tomllib
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from schemas.events import BEHAVIOR_CODE, BEHAVIORS
from schemas.paths import parse


def _alternatives(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_alternatives)]
"""One path, or several of which the first that is there counts."""


class Section(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Filter(Section):
    """A condition on a record; a record that fails one is left out on purpose."""

    path: str
    equals: str | int | float | bool | None = None
    one_of: tuple[str | int | float | bool, ...] | None = Field(None, alias="in")
    none_of: tuple[str | int | float | bool, ...] | None = Field(None, alias="not_in")
    exists: bool | None = None

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        given = [k for k in ("equals", "one_of", "none_of", "exists") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError("filter: want exactly one of equals, in, not_in, exists")
        parse(self.path)
        return self


class ItemMapping(Section):
    """Where an item's content is."""

    id: Paths
    title: Paths
    text: Paths = ()
    """All of these are joined."""
    categories: Paths = ()
    separator: str | None = None
    """Splits a category string, such as "|" or " > "."""


class PlatformMapping(Section):
    """One platform of the settings."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    code: int = Field(ge=1, le=63)
    """What windows store: never change it."""
    topic: str = ""
    items_topic: str = ""
    """`items.<name>` by default; "none" if there is none."""
    preset: str | None = None
    shared_ids: bool = False
    """Accounts of this platform are user ids as they are; else `name:account`."""
    account: Paths
    item: Paths
    behavior: Paths = ()
    behaviors: dict[str, str] = {}
    """The platform's words -> behaviors; a behavior's own name needs no entry."""
    default_behavior: str | None = None
    """Where there is no word; an unknown word is rejected all the same."""
    time: Paths
    time_format: Literal["s", "ms", "us", "iso8601"] = "ms"
    value: Paths = ()
    value_scale: tuple[float, float] | None = None
    """[lowest, highest] is mapped to -1..1, as for ratings."""
    dwell: Paths = ()
    dwell_unit: Literal["s", "ms"] = "s"
    event_id: Paths = ()
    filters: tuple[Filter, ...] = ()
    items: ItemMapping | None = None

    @model_validator(mode="before")
    @classmethod
    def _preset_and_topics(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("preset")
        values = {**(preset(name) if name is not None else {}), **given}
        values["topic"] = values.get("topic") or f"events.{values.get('name')}"
        items_topic = values.get("items_topic") or f"items.{values.get('name')}"
        values["items_topic"] = "" if items_topic == "none" else items_topic
        return values

    @field_validator("behaviors", "default_behavior")
    @classmethod
    def _known_behaviors(cls, value: Any) -> Any:
        for name in value.values() if isinstance(value, dict) else [value]:
            if name is not None and name not in BEHAVIOR_CODE:
                raise ValueError(f"behavior {name!r}: want one of {', '.join(BEHAVIORS)}")
        return value

    @model_validator(mode="after")
    def _paths(self) -> Self:
        arrays = {
            p.array for field in (self.account, self.item, self.behavior, self.time, self.value, self.dwell, self.event_id) for p in map(parse, field)
        }
        if len(arrays - {None}) > 1:
            raise ValueError("paths with [*] must all go through the same array")
        for path in (*self.items.id, *self.items.title, *self.items.text, *self.items.categories) if self.items else ():
            parse(path)
        if self.value_scale and self.value_scale[0] >= self.value_scale[1]:
            raise ValueError("value_scale: want [lowest, highest]")
        if not self.behavior and not self.default_behavior:
            raise ValueError("want behavior or default_behavior")
        return self


def presets() -> list[str]:
    """Names of the shipped mappings."""
    return sorted(f.name.removesuffix(".toml") for f in (files("schemas") / "platforms").iterdir() if f.name.endswith(".toml"))


def preset(name: object) -> dict[str, Any]:
    """A shipped mapping as a dict. Raises ValueError naming those that there are."""
    if name not in presets():
        raise ValueError(f"preset {name!r}: want one of {', '.join(presets())}")
    return tomllib.loads((files("schemas") / "platforms" / f"{name}.toml").read_text())
