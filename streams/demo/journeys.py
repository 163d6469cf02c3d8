"""Chooses the next action of each person in the synthetic world, so that an encoder has more to learn than topics. Seeded; knows no time and no JSON.

A journey leads through a topic's subjects. A person who wants a subject watches and reads how to choose it, looks at it in the shop, and buys it
there or elsewhere. A person who has the subject watches and reads how to use it, and looks for the next subject in the shop.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from streams.demo.catalogue import SUBJECTS, TOPICS, Thing

STRAY = 0.08  # share of events outside a person's tastes
BROWSE = 0.12  # share of events on popular items of the topic
SWITCH = 0.35  # chance per event of a switch to one of the person's tastes
BUY = 0.4  # chance per look at an item in the shop that the person buys it
MOVE = 0.3  # chance per video or article that the person got the subject elsewhere, or is done with it
DRIFT = 1 / 60  # chance per event that a person replaces a taste with another
STRIDES = (1, 5, 2, 4)  # fashion -> steps from one subject to the next
COMPANION = 0.35  # share of events on the topic that the fashion pairs with the person's topic; 0 in fashion 0

Deed = Literal["look", "take", "refuse"]


@dataclass
class Journey:
    """Owns a person's position in a topic."""

    topic: str
    subject: int
    has: bool = False
    """Whether the person has the subject."""
    seen: set[str] = field(default_factory=set)
    """Ids of the subject's items that the person has seen."""

    def move(self, stride: int = 1) -> None:
        """Advance: from wanting the subject to having it, or from having it to wanting the next subject, `stride` further."""
        if self.has:
            self.subject, self.seen = (self.subject + stride) % SUBJECTS, set()
        self.has = not self.has


@dataclass
class Person:
    """Owns a person's platforms and up to three journeys, one per taste."""

    id: str
    platforms: list[str]
    journeys: list[Journey]
    now: int = 0
    """Index of the current journey."""
    drift: float = DRIFT
    fashion: int = 0
    """Selects the order of subjects, the pairs of topics and the popular items. A change makes an encoder that learned the old fashion worse."""


class Journeys:
    """Owns the items of a catalogue by topic and subject, and chooses people's next actions."""

    def __init__(self, things: Iterable[Thing], r: random.Random) -> None:
        self._random = r
        self._popular: dict[tuple[str, str], list[Thing]] = {}
        self._shelf: dict[tuple[str, str, int, bool], list[Thing]] = {}
        for t in things:
            self._popular.setdefault((t.platform, t.topic), []).append(t)
            self._shelf.setdefault((t.platform, t.topic, t.subject, t.later), []).append(t)

    def person(self, name: str, platforms: list[str], tastes: int) -> Person:
        """Return a new person in the middle of their journeys."""
        r = self._random
        return Person(name, platforms, [Journey(topic, r.randrange(SUBJECTS), r.random() < 0.5) for topic in r.sample(list(TOPICS), tastes)])

    def next(self, person: Person, platform: str) -> tuple[Thing, Deed]:
        """Return a person's next item and action on a platform. Updates the person."""
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
        while not (left := self._left(journey, platform)):  # the shop has no items for owners of the subject
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
        """Draw an item by Zipf's law: the n-th item comes up 1/n as often as the first. The person's fashion selects the first item."""
        chosen = self._random.choices(range(len(things)), cum_weights=list(accumulate(1 / n for n in range(1, len(things) + 1))))[0]
        return things[(chosen + person.fashion * len(things) // len(STRIDES)) % len(things)]
