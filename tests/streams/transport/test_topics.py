"""Topics that settings name."""

from schemas.mapping import PlatformMapping
from streams.core.settings import Settings
from streams.transport.topics import topics


def test_shared_topic() -> None:
    """Platforms may share a topic; it is listed once."""
    one, two = (PlatformMapping.model_validate({"name": name, "code": code, "preset": "plain", "topic": "in"}) for name, code in (("a", 1), ("b", 2)))
    names = [t.name for t in topics(Settings(platforms=(one, two)))]
    assert names.count("in") == 1
    assert len(names) == len(set(names))
