"""What the query endpoint takes and gives, as its OpenAPI page shows it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.profiles import unpack_profile, unpack_vector


class Body(BaseModel):
    """A request: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class BatchGet(Body):
    """Which profiles."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user_ids": ["shop:42", "ann"], "vector": False}]})

    user_ids: list[str] = Field(description="Users, at most query.max_batch")
    vector: bool = Field(False, description="Add the interest vectors")


class Content(Body):
    """An item by its content."""

    id: str = Field(min_length=1, description="Comes back in the ranking")
    title: str = Field(description="What a reader would see")
    text: str = Field("", description="Further content")
    categories: list[str] = Field([], description="Names")


class Rank(Body):
    """What to rank."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"items": ["shop:sku-1"], "contents": [{"id": "new", "title": "Espresso cups", "categories": ["Kitchen"]}]}]},
    )

    items: list[str] = Field([], description="Items as `platform:item_id`")
    contents: list[Content] = Field([], description="Items by content, seen before or not")


class Scored(BaseModel):
    """An item and its score."""

    item: str
    score: float = Field(description="Dot product with the interest vector, -1..1")


class Ranking(BaseModel):
    """Items, best first."""

    user_id: str
    space_id: str
    encoder_version: str
    updated_at: int
    ranked: list[Scored]
    unknown: list[str] = Field(description="Items without a vector: give their content instead")


class EvidenceView(BaseModel):
    """An action behind an interest."""

    item: str
    title: str
    behavior: str
    at: int = Field(description="ms")


class InterestView(BaseModel):
    """A named interest."""

    name: str
    weight: float = Field(description="Share of all interest, 0..1")
    trend: float = Field(description="Share in the newer half of the window minus the older half, -1..1")
    platforms: dict[str, float] = Field(description="Share of each platform in this interest")
    evidence: list[EvidenceView]


class ProblemView(BaseModel):
    """Every answer that is not 200 (RFC 9457, application/problem+json)."""

    type: str = Field("about:blank", description="No kinds of their own: the status says it")
    title: str = Field(description="Of the status")
    status: int
    detail: str = Field(description="What was wrong, in words; names the field with 422")
    error: str = Field(description="The same as detail")
    user_id: str | None = Field(None, description="With 404")
    space_id: str | None = Field(None, description="With 409: the profile's")
    errors: list[dict[str, str]] | None = Field(None, description="With 422 of a request that is not as documented: field and why of each")


class About(BaseModel):
    """What answers at `/`."""

    name: str
    about: str
    docs: str
    openapi: str
    routes: list[str]


class ProfileView(BaseModel):
    """A profile. Times in ms since the epoch."""

    user_id: str
    updated_at: int
    age_ms: int = Field(description="Since updated_at, when this was answered")
    last_event_at: int = Field(description="Time of the newest event in the window")
    received_at: int = Field(description="When the newest event behind this update reached Kafka")
    events: int = Field(description="Events in the window")
    unknown_items: int = Field(description="Of these, on items whose content has not arrived")
    encoder_version: str
    space_id: str
    dims: int
    vector: list[float] | None = Field(None, description="With vector=true. In MessagePack: little-endian float16 bytes")
    interests: list[InterestView]


class BatchProfiles(BaseModel):
    """Answer of batchGet."""

    profiles: list[ProfileView]
    unknown: list[str]


def view(profile: bytes, now_ms: int, vector: bool, binary: bool) -> dict[str, Any]:
    """A packed profile as answered: floats in JSON, the float16 bytes in MessagePack."""
    row = unpack_profile(profile)
    row["age_ms"] = max(0, now_ms - row["updated_at"])
    if not (vector and binary):
        packed = row.pop("vector")
        del row["vector_type"]
        if vector:
            row["vector"] = unpack_vector(packed).tolist()
    return row
