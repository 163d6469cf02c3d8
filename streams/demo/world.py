"""The synthetic world of the demo: three platforms, each with its own JSON, and users with journeys. Seeded; knows no Kafka."""

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from streams.demo.catalogue import Thing, catalogue
from streams.demo.journeys import DRIFT, Deed, Journeys, Person

LATE, DUPLICATE, BAD = 0.02, 0.01, 0.005  # shares of the stream
FEATURED_SHARE = 0.01  # the featured user's share of all events
FAR_FUTURE_MS = 400 * 86_400_000
BUSY_HOURS = {"shop": 14, "video": 21, "news": 8}  # UTC; hour with the most events of a platform
# Platform -> deed -> the platform's action names, with weights.
ACTIONS: dict[str, dict[Deed, dict[str, int]]] = {
    "shop": {"look": {"viewed": 75, "added_to_cart": 15, "wished": 10}, "take": {"purchased": 1}, "refuse": {"viewed": 1}},
    "video": {"look": {"play": 78, "like": 16, "share": 6}, "refuse": {"not_interested": 1}},
    "news": {"look": {"open": 60, "read": 30, "comment": 4, "keep": 6}, "refuse": {"open": 1}},
}


class Emitted(NamedTuple):
    """One record for a platform's topic."""

    platform: str
    key: bytes | None
    value: bytes | None
    kind: str
    """ok, late, duplicate or bad."""


class World:
    """Owns users, items and the stream of events. `seed` determines the users and their actions, `catalogue_seed` the items."""

    def __init__(self, seed: int = 1, users: int = 2000, items_per_platform: int = 1200, catalogue_seed: int = 1) -> None:
        self._random = r = random.Random(seed)
        self.things = catalogue(catalogue_seed, items_per_platform)
        self._journeys = Journeys(self.things, r)
        self._people = [self._person(f"u{n:06d}") for n in range(users)]
        self._featured = self._people[0]
        self._featured.platforms, self._featured.drift = list(ACTIONS), 4 * DRIFT
        self.featured = self._featured.id
        self._serial = 0

    def _person(self, name: str) -> Person:
        r = self._random
        return self._journeys.person(name, r.sample(list(ACTIONS), r.choice((1, 2, 2, 3, 3))), r.randint(1, 3))

    def turn(self, fashion: int, share: float = 1.0) -> None:
        """Change the fashion of a share of the people: other items become popular, and other subjects come next."""
        for person in self._people:
            if share >= 1 or self._random.random() < share:
                person.fashion = fashion

    def items(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield (platform, key, JSON) of every item, in the platform's own shape."""
        for t in self.things:
            yield t.platform, t.id.encode(), orjson.dumps(_ITEM_SHAPES[t.platform](t))

    def events(self, clock: Callable[[], int]) -> Iterator[Emitted]:
        """Yield events without end. `clock` returns the time in ms."""
        r, recent, bad = self._random, deque[Emitted](maxlen=500), 0
        while True:
            lot = r.random()
            if lot < DUPLICATE and recent:
                yield recent[r.randrange(len(recent))]._replace(kind="duplicate")
                continue
            now = clock()
            if lot < DUPLICATE + BAD:
                yield self._broken(bad, now)
                bad += 1
                continue
            late = lot < DUPLICATE + BAD + LATE
            event = self._event(now - r.randint(60_000, 6 * 3_600_000) if late else now, "late" if late else "ok")
            recent.append(event)
            yield event

    def _event(self, at_ms: int, kind: str) -> Emitted:
        r = self._random
        person = self._featured if r.random() < FEATURED_SHARE else self._people[int(len(self._people) * r.random() ** 2)]
        platform = r.choices(person.platforms, [liveliness(p, at_ms) for p in person.platforms])[0]
        thing, deed = self._journeys.next(person, platform)
        words = ACTIONS[platform][deed]
        action = r.choices(list(words), list(words.values()))[0]
        self._serial += 1
        body = _SHAPES[platform](person.id, action, thing.id, at_ms, self._serial, r)
        return Emitted(platform, person.id.encode(), orjson.dumps(body), kind)

    def _broken(self, n: int, now_ms: int) -> Emitted:
        """Return the n-th broken record. The kinds of damage follow in turn."""
        event = self._event(now_ms, "bad")
        body: dict[str, Any] = orjson.loads(event.value or b"")
        account, item, action, time = _KEYS[event.platform]
        far = now_ms + FAR_FUTURE_MS
        ways: list[Callable[[], bytes | None]] = [
            lambda: (event.value or b"")[:-7],
            lambda: orjson.dumps({k: v for k, v in body.items() if k != account}),
            lambda: orjson.dumps({k: v for k, v in body.items() if k != item}),
            lambda: orjson.dumps({**body, action: "teleported"}),
            lambda: orjson.dumps({**body, time: _TIMES[event.platform](far)}),
            lambda: orjson.dumps([body, "and more"]),
            lambda: None,
            lambda: b'{"customer": "\xff\xfe"}',
        ]
        return event._replace(value=ways[n % len(ways)]())


def liveliness(platform: str, at_ms: int) -> float:
    """Return the weight of a platform at a time of day: 1 at night, 4 in its busiest hour."""
    hours = at_ms / 3_600_000 - BUSY_HOURS[platform]
    return 1 + 3 * max(0.0, math.cos(hours * math.tau / 24))


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def _shop(user: str, action: str, item: str, at_ms: int, serial: int, r: random.Random) -> dict[str, Any]:
    return {
        "customer": {"id": user, "segment": "b2c"},
        "action": action,
        "sku": item,
        "at": _iso(at_ms),
        "amount": round(r.uniform(3, 200), 2) if action == "purchased" else None,
        "uuid": f"s-{serial}",
    }


def _video(user: str, action: str, item: str, at_ms: int, serial: int, r: random.Random) -> dict[str, Any]:
    watched_ms = r.randint(0, 5_000 if action == "not_interested" else 600_000)
    return {"viewer": user, "kind": action, "video": {"id": item}, "ts": at_ms / 1000, "watched_ms": watched_ms, "eid": serial}


def _news(user: str, action: str, item: str, at_ms: int, serial: int, r: random.Random) -> dict[str, Any]:
    return {"reader_id": user, "verb": action, "article": item, "time_us": at_ms * 1000 + serial % 1000}


_SHAPES: dict[str, Callable[..., dict[str, Any]]] = {"shop": _shop, "video": _video, "news": _news}
_KEYS = {"shop": ("customer", "sku", "action", "at"), "video": ("viewer", "video", "kind", "ts"), "news": ("reader_id", "article", "verb", "time_us")}
_TIMES: dict[str, Callable[[int], Any]] = {"shop": _iso, "video": lambda ms: ms / 1000, "news": lambda ms: ms * 1000}
_ITEM_SHAPES: dict[str, Callable[[Thing], dict[str, Any]]] = {
    "shop": lambda t: {"sku": t.id, "name": t.title, "taxonomy": " > ".join(t.categories), "stock": 5},
    "video": lambda t: {"video_id": t.id, "meta": {"title": t.title, "tags": list(t.categories)}},
    "news": lambda t: {"slug": t.id, "headline": t.title, "sections": [{"name": c} for c in t.categories]},
}
