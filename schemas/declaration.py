"""How a platform's JSON is declared in the settings. `docs/mappings.md` explains every key."""

import tomllib
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, field_validator, model_validator

from schemas.events import BEHAVIOR_CODE, BEHAVIORS
from schemas.metadata import ROOTS
from schemas.numbers import NumberFormat
from schemas.paths import Path, parse
from schemas.times import TimeFormat


def _alternatives(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _steps(text: str) -> Path:
    """A path, compiled. Raises ValueError also where it goes into metadata that has no inside."""
    path = parse(text)
    start = path.arrays[0] if path.arrays else path.steps
    if start and start[0] in ROOTS and not text.startswith('"'):
        inside = [*start[1:], *(path.arrays and ["[*]"])]
        if start[0] == "@timestamp" and inside:
            raise ValueError(f"path {text!r}: want @timestamp alone, it is a number")
        if start[0] == "@headers" and (len(inside) != 1 or not isinstance(inside[0], str) or inside == ["[*]"]):
            raise ValueError(f"path {text!r}: want one name, as in @headers.name")
    return path


def _plain(key: str, paths: tuple[str, ...]) -> None:
    for text in paths:
        if _steps(text).arrays:
            raise ValueError(f"{key}: path {text!r}: want a path without [*]")


def _array(key: str, paths: dict[str, tuple[str, ...]], arrays: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
    """The array that all paths of some fields with [*] go through, () if none does. Raises ValueError naming the field whose path does not."""
    every = [(field, path) for field, texts in paths.items() for path in map(_steps, texts) if path.arrays]
    if arrays is None:
        arrays = max((path.arrays for _, path in every), key=len, default=())
    for field, path in every:
        if arrays[: len(path.arrays)] != path.arrays:
            whole = next((p.text for _, p in every if p.arrays == arrays), None)
            wanted = f"the array of {whole!r}" if whole else "no [*], no field that makes events goes through an array"
            raise ValueError(f"{key}{field}: path {path.text!r}: paths with [*] must all go through the same array: want {wanted}")
    return arrays


Scalar = str | int | float | bool
Paths = Annotated[tuple[str, ...], BeforeValidator(_alternatives)]
"""One path, or several of which the first that is there counts."""


FIELDS = ("account", "item", "behavior", "behavior_parts", "time", "value", "dwell", "event_id")
IGNORE = "ignore"
"""What a word means whose records are left out on purpose."""


class Section(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Filter(Section):
    """A condition on a record, or with [*] on an element of its array; what fails one is left out on purpose."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    path: Paths
    equals: Scalar | None = None
    one_of: tuple[Scalar, ...] | None = Field(None, alias="in")
    none_of: tuple[Scalar, ...] | None = Field(None, alias="not_in")
    exists: bool | None = None

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        given = [k for k in ("equals", "one_of", "none_of", "exists") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError("filter: want exactly one of equals, in, not_in, exists")
        for path in self.path:
            _steps(path)
        return self

    @property
    def inside(self) -> bool:
        """Whether it is a condition on elements."""
        return any(parse(p).arrays for p in self.path)


class ItemMapping(Section):
    """Where an item's content is."""

    id: Paths
    title: Paths
    text: Paths = ()
    """All of these are joined."""
    categories: Paths = ()
    separator: str | None = None
    """Splits a category string, such as "|" or " > "."""
    none_values: tuple[Scalar, ...] = ()
    """Values of id, title and filters that count as if they were not there."""
    filters: tuple[Filter, ...] = ()
    deleted: Filter | None = None
    """Where it holds, the item is taken away."""
    tombstone: Paths = ("@key",)
    """The id of the item that a record without value takes away; a path into the key."""

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The array of which each element is an item; () for one item a record."""
        return max((parse(p).arrays for p in self.id), key=len)

    @model_validator(mode="after")
    def _arrays_of_items(self) -> Self:
        _array("", {"id": self.id})
        conditions = {f"filters[{i}]": f.path for i, f in enumerate(self.filters)} | ({"deleted": self.deleted.path} if self.deleted else {})
        named = next((p for p in self.id if parse(p).arrays), None)
        for field, path in ((f, p) for f, texts in {"title": self.title, **conditions}.items() for p in map(_steps, texts) if p.arrays):
            if self.arrays[: len(path.arrays)] != path.arrays:
                wanted = f"the array of id, {named!r}" if named else "no [*], since id goes through no array"
                raise ValueError(f"{field}: path {path.text!r}: want {wanted}")
        for text in (*self.text, *self.categories):
            _steps(text)
        for text in self.tombstone:
            if not text.startswith(("@key", "@headers.")):
                raise ValueError(f"tombstone: path {text!r}: want a path into the key or a header, as in @key.payload.id")
        _plain("tombstone", self.tombstone)
        return self


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
    behavior_parts: Paths = ()
    """Words that make one together, joined by "/"; counts before `behavior`."""
    behaviors: dict[str, str] = {}
    """The platform's words -> behaviors, or "ignore"; a behavior's own name needs no entry. They add to a preset's."""
    default_behavior: str | None = None
    """Where there is no word; an unknown word is rejected all the same."""
    time: Paths
    time_format: TimeFormat = "ms"
    value: Paths = ()
    value_format: NumberFormat = "plain"
    value_scale: tuple[float, float] | None = None
    """[lowest, highest] is mapped to -1..1, as for ratings."""
    dwell: Paths = ()
    dwell_unit: Literal["s", "ms"] = "s"
    event_id: Paths = ()
    none_values: tuple[Scalar, ...] | dict[str, tuple[Scalar, ...]] = ()
    """Values that count as if they were not there: of all fields and filters, or by field."""
    lenient: tuple[Literal["value", "dwell", "event_id"], ...] = ("value", "dwell")
    """Fields that are left out, and counted, where they cannot be read; else the record is rejected."""
    filters: tuple[Filter, ...] = ()
    batch: Paths = ()
    """An array of which each element is a record of its own."""
    base64: Paths = ()
    from_json: Paths = ()
    """Text in the record that is JSON, and is read as such."""
    envelope: Literal["none", "cloudevents"] = "none"
    """`cloudevents`: attributes may be in the record's headers (binary mode)."""
    items: ItemMapping | None = None

    @model_validator(mode="before")
    @classmethod
    def _preset_and_topics(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("preset")
        shipped = preset(name) if name is not None else {}
        values = {**shipped, **given}
        if isinstance(given.get("behaviors"), dict):
            values["behaviors"] = {**shipped.get("behaviors", {}), **given["behaviors"]}
        values["topic"] = values.get("topic") or f"events.{values.get('name')}"
        items_topic = values.get("items_topic") or f"items.{values.get('name')}"
        values["items_topic"] = "" if items_topic == "none" else items_topic
        return values

    @field_serializer("items_topic")
    def _no_items_topic(self, value: str) -> str:
        return value or "none"

    @field_validator("behaviors")
    @classmethod
    def _known_behaviors(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value.values():
            if name not in BEHAVIOR_CODE and name != IGNORE:
                raise ValueError(f"behavior {name!r}: want one of {', '.join(BEHAVIORS)}, or {IGNORE}")
        return value

    @field_validator("default_behavior")
    @classmethod
    def _known_default(cls, value: str | None) -> str | None:
        if value is not None and value not in BEHAVIOR_CODE:
            raise ValueError(f"behavior {value!r}: want one of {', '.join(BEHAVIORS)}")
        return value

    @field_validator("none_values")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in (*FIELDS, "filters"):
                raise ValueError(f"none_values.{name}: want one of {', '.join(FIELDS)}, filters")
        return value

    def paths(self) -> dict[str, tuple[str, ...]]:
        """The paths of each field of an event."""
        return {name: getattr(self, name) for name in FIELDS}

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The array of which each element is an event, as steps to it and on from element to element; () for one event a record."""
        return _array("", self.paths())

    def none_of(self, field: str) -> tuple[Scalar, ...]:
        """Values that mean none in a field, or in `filters`."""
        return self.none_values.get(field, ()) if isinstance(self.none_values, dict) else self.none_values

    @model_validator(mode="after")
    def _paths(self) -> Self:
        arrays = _array("", self.paths())
        _array("", {f"filters[{i}]": f.path for i, f in enumerate(self.filters)}, arrays)
        for key in ("batch", "base64", "from_json"):
            _plain(key, getattr(self, key))
        if self.value_scale and self.value_scale[0] >= self.value_scale[1]:
            raise ValueError("value_scale: want [lowest, highest]")
        if not self.behavior and not self.behavior_parts and not self.default_behavior:
            raise ValueError("want behavior, behavior_parts or default_behavior")
        return self


def presets() -> list[str]:
    """Names of the shipped mappings."""
    return sorted(f.name.removesuffix(".toml") for f in (files("schemas") / "platforms").iterdir() if f.name.endswith(".toml"))


def preset(name: object) -> dict[str, Any]:
    """A shipped mapping as a dict. Raises ValueError naming those that there are."""
    if name not in presets():
        raise ValueError(f"preset {name!r}: want one of {', '.join(presets())}")
    return tomllib.loads((files("schemas") / "platforms" / f"{name}.toml").read_text())
