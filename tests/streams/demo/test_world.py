"""The synthetic world: what is fixed by its seeds, and what there is to learn in it."""

from collections import Counter, defaultdict
from itertools import count, islice
from random import Random

import pytest

from streams.demo import journeys
from streams.demo.catalogue import SUBJECTS, TOPICS, Thing, catalogue
from streams.demo.world import Emitted, World, liveliness

START = 1_790_000_000_000


def some(world: World, n: int) -> list[Emitted]:
    times = count(START, 60_000)
    return list(islice(world.events(lambda: next(times)), n))


def test_seeds() -> None:
    """The same seeds give the same bytes; another seed other users' events on the same items; another catalogue seed shares no item."""
    assert some(World(3, 50), 500) == some(World(3, 50), 500) != some(World(4, 50), 500)
    assert list(World(3, 50).items()) == list(World(4, 50).items())
    ids = [{t.id for t in catalogue(seed, 100)} for seed in (1, 2)]
    assert len(ids[0]) == len(ids[1]) == 300
    assert not ids[0] & ids[1]


def test_subjects() -> None:
    """Every topic has as many subjects, and some things for who has one on every platform but the shop."""
    assert {len(words.split("|")) for _, words in TOPICS.values()} == {SUBJECTS}
    assert {t.platform for t in catalogue(1, 1200) if t.later} == {"video", "news"}


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> tuple[journeys.Journeys, journeys.Person]:
    """Somebody with one taste who never leaves their journey."""
    for chance in ("STRAY", "BROWSE"):
        monkeypatch.setattr(journeys, chance, 0)
    world = journeys.Journeys(catalogue(1, 1200), Random(1))
    person = world.person("p", ["shop", "video", "news"], 1)
    person.drift = 0
    return world, person


def test_bought(straight: tuple[journeys.Journeys, journeys.Person]) -> None:
    """After a purchase the shop is asked for the next subject, and videos are about living with this one."""
    world, person = straight
    bought = 0
    for _ in range(300):
        thing, deed = world.next(person, "shop")
        if deed != "take":
            continue
        bought += 1
        watched, _ = world.next(person, "video")
        assert watched.later
        assert watched.subject == thing.subject
        wanted, _ = world.next(person, "shop")
        assert (wanted.subject - thing.subject) % SUBJECTS in (1, 2)  # 2 where the video was the last of it
    assert bought > 50


def test_nothing_twice(straight: tuple[journeys.Journeys, journeys.Person]) -> None:
    """Nothing is met twice on the way through a subject, and what is popular is met more often."""
    world, person = straight
    met: dict[str, int] = defaultdict(int)
    stage, seen = (-1, False), set[str]()
    for _ in range(4000):
        thing, _ = world.next(person, "video")
        if stage != (thing.subject, thing.later):
            stage, seen = (thing.subject, thing.later), set()
        assert thing.id not in seen
        seen.add(thing.id)
        met[thing.id] += 1
    shelves: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for t in catalogue(1, 1200):
        if t.platform == "video" and t.topic == person.journeys[0].topic:
            shelves[t.subject, t.later].append(t.id)
    first, last = (sum(met[s[i]] for s in shelves.values() if len(s) > 1) for i in (0, -1))
    assert first > 1.3 * last


def test_hours() -> None:
    """A platform is used most in its own hours, and never not at all."""
    hour = 3_600_000
    assert [max(range(24), key=lambda h: liveliness(p, h * hour)) for p in ("shop", "video", "news")] == [14, 21, 8]
    assert min(liveliness("news", h * hour) for h in range(24)) == 1


def test_fashion() -> None:
    """Where tastes drift other things come, from the same people on the same platforms; a share of the people goes over alone."""
    plain, turned, some_turned = World(3, 60), World(3, 60), World(3, 60)
    turned.turn(1)
    some_turned.turn(1, 0.5)
    fashions = [p.fashion for p in some_turned._people]
    assert 10 < sum(fashions) < 50
    popular = [max(Counter(t.id for t in met(world)).items(), key=lambda row: row[1])[0] for world in (plain, turned)]
    assert popular[0] != popular[1]
    assert {t.topic for t in met(plain)} == {t.topic for t in met(turned)}


def met(world: World) -> list[Thing]:
    """What one person of a world comes by on one platform."""
    person = world._people[1]
    return [world._journeys.next(person, person.platforms[0])[0] for _ in range(3000)]
