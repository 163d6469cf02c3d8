"""`currents tail`: the changelog of profiles, or the topic of releases, followed without end."""

from collections.abc import Iterator
from typing import Any

from schemas.profiles import Profile, decode_profile
from schemas.rows import bad_profiles
from streams.core.settings import Settings
from streams.monitoring.rejected import Rejected
from streams.releases.release_log import Announced, of_record
from streams.transport.clients import consumer, extent


def follow(settings: Settings, users: set[str], from_beginning: bool) -> Iterator[tuple[str, Profile | None]]:
    """(user, profile) as the changelog says it, without end; None = erased."""
    rejected = Rejected()
    for r in _tail(settings, "profiles", from_beginning):
        try:
            for error in bad_profiles([(r.key, r.value)]).values():
                raise error
            user, profile = r.key.decode(), None if r.value is None else decode_profile(r.value)
        except ValueError as error:
            rejected(r, error)
            continue
        if not users or user in users:
            yield user, profile


def follow_releases(settings: Settings, from_beginning: bool) -> Iterator[Announced]:
    """Records of the topic of releases, without end."""
    yield from map(of_record, _tail(settings, "releases", from_beginning))


def _tail(settings: Settings, topic: str, from_beginning: bool) -> Iterator[Any]:
    """Records of one of our topics, without end."""
    spans = extent(settings, [settings.topic(topic)])  # what a broker answers to a question for the latest offset is not always right
    client = consumer(settings)
    client.assign(list(spans))
    for tp, (first, end) in spans.items():
        client.seek(tp, first if from_beginning else end)
    while True:
        for records in client.poll(500).values():
            yield from records
