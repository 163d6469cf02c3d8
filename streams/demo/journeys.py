"""What the people of the synthetic world do next, and why: there is more to learn than a topic. Seeded; knows neither time nor JSON.

A journey goes through a topic's subjects. Who wants a subject watches and reads how to choose it, looks at it in the shop, and buys it there or
elsewhere. Who has it watches and reads how to live with it, and is done with buying it: the shop is asked for the next subject.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from streams.demo.catalogue import SUBJECTS, TOPICS, Thing

STRAY = 0.08  # share of events outside all tastes
BROWSE = 0.12  # share of events on what is popular in the topic
SWITCH = 0.35  # chance per event to go to one of the other tastes
BUY = 0.4  # chance per look at a thing in the shop that it is bought
MOVE = 0.3  # chance per video or article that the subject is had, from elsewhere, or done with
DRIFT = 1 / 60  # chance per event that a taste is given up for another
STRIDES = (1, 5, 2, 4)  # by fashion: which subject comes after one, so many further
COMPANION = 0.35  # share of events on the topic that goes with one's own, where fashion says which that is

Deed = Literal["look", "take", "refuse"]


@dataclass
class Journey:
    """Where a person stands in a topic."""

    topic: str
    subject: int
    has: bool = False
    """Whether they have the subject by now."""
    seen: set[str] = field(default_factory=set)
    """Ids of the things of this subject that they met."""

    def move(self, stride: int = 1) -> None:
        """Who had to look now has it; who has it goes to the next subject."""
        if self.has:
            self.subject, self.seen = (self.subject + stride) % SUBJECTS, set()
        self.has = not self.has


@dataclass
class Person:
    """Somebody with up to three tastes."""

    id: str
    platforms: list[str]
    journeys: list[Journey]
    now: int = 0
    """Which journey they are on."""
    drift: float = DRIFT
    fashion: int = 0
    """What comes after what, what goes with what, and what is popular: another one makes what was learned of this one worth less."""


class Journeys:
    """The things of a catalogue as people come by them."""

    def __init__(self, things: Iterable[Thing], r: random.Random) -> None:
        self._random = r
        self._popular: dict[tuple[str, str], list[Thing]] = {}
        self._shelf: dict[tuple[str, str, int, bool], list[Thing]] = {}
        for t in things:
            self._popular.setdefault((t.platform, t.topic), []).append(t)
            self._shelf.setdefault((t.platform, t.topic, t.subject, t.later), []).append(t)

    def person(self, name: str, platforms: list[str], tastes: int) -> Person:
        """Somebody new, in the middle of their journeys."""
        r = self._random
        return Person(name, platforms, [Journey(topic, r.randrange(SUBJECTS), r.random() < 0.5) for topic in r.sample(list(TOPICS), tastes)])

    def next(self, person: Person, platform: str) -> tuple[Thing, Deed]:
        """What a person does next on a platform; they change by it."""
        r = self._random
        if r.random() < STRAY:
            return self._pick(self._popular[platform, r.choice(list(TOPICS))], person), r.choice(("look", "refuse"))
        if r.random() < SWITCH:
            person.now = r.randrange(len(person.journeys))
        journey = person.journeys[person.now]
        if r.random() < person.drift:
            person.journeys[person.now] = Journey(r.choice(list(TOPICS)), r.randrange(SUBJECTS))
            return self._pick(self._popular[platform, journey.topic], person), "refuse"
        if person.fashion and r.random() < COMPANION:
            topics = list(TOPICS)
            beside = topics[(topics.index(journey.topic) + 7 * person.fashion) % len(topics)]
            return self._pick(self._popular[platform, beside], person), "look"
        if r.random() < BROWSE:
            return self._pick(self._popular[platform, journey.topic], person), "look"
        return self._along(person, journey, platform)

    def _along(self, person: Person, journey: Journey, platform: str) -> tuple[Thing, Deed]:
        stride = STRIDES[person.fashion % len(STRIDES)]
        while not (left := self._left(journey, platform)):  # in the shop there is nothing for who has the subject
            journey.move(stride)
        thing, buying = self._pick(left, person), platform == "shop"
        journey.seen.add(thing.id)
        if self._random.random() >= (BUY if buying else MOVE):
            return thing, "look"
        journey.move(stride)
        return thing, "take" if buying else "look"

    def _left(self, journey: Journey, platform: str) -> list[Thing]:
        return [t for t in self._shelf.get((platform, journey.topic, journey.subject, journey.has), ()) if t.id not in journey.seen]

    def _pick(self, things: Sequence[Thing], person: Person) -> Thing:
        """Zipf: the n-th of a shelf is met 1/n as often as the first; which one is the first is a matter of fashion."""
        chosen = self._random.choices(range(len(things)), cum_weights=list(accumulate(1 / n for n in range(1, len(things) + 1))))[0]
        return things[(chosen + person.fashion * len(things) // len(STRIDES)) % len(things)]
