"""The synthetic world of the demo: three platforms, each with its own JSON, and users whose tastes drift. Seeded; knows no Kafka."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from streams.catalogue import TOPICS, Thing, catalogue

LATE, DUPLICATE, BAD = 0.02, 0.01, 0.005  # shares of the stream
FEATURED_SHARE = 0.01  # of all events are the featured user's
DRIFT = 1 / 60  # chance per event that a user's tastes move
FAR_FUTURE_MS = 400 * 86_400_000
ACTIONS: dict[str, tuple[tuple[str, int], ...]] = {
    "shop": (("viewed", 70), ("added_to_cart", 15), ("purchased", 10), ("wished", 5)),
    "video": (("play", 75), ("like", 15), ("share", 5), ("not_interested", 5)),
    "news": (("open", 60), ("read", 30), ("comment", 4), ("keep", 6)),
}


class Emitted(NamedTuple):
    """One record for a platform's topic."""

    platform: str
    key: bytes | None
    value: bytes | None
    kind: str
    """ok, late, duplicate or bad."""


class World:
    """Users, items and what happens between them."""

    def __init__(self, seed: int = 1, users: int = 2000, items_per_platform: int = 1200) -> None:
        self._random = random.Random(seed)
        self.things = catalogue(seed, items_per_platform)
        self._by_topic: dict[tuple[str, str], list[Thing]] = {}
        for thing in self.things:
            self._by_topic.setdefault((thing.platform, thing.topic), []).append(thing)
        self._users = [f"u{n:06d}" for n in range(users)]
        self.featured = self._users[0]
        self._tastes = {user: self._random.sample(list(TOPICS), self._random.randint(1, 3)) for user in self._users}
        self._platforms = {user: self._random.sample(list(ACTIONS), self._random.choice((1, 2, 2, 3, 3))) for user in self._users}
        self._platforms[self.featured] = list(ACTIONS)
        self._serial = 0

    def items(self) -> Iterator[tuple[str, bytes, bytes]]:
        """(platform, key, JSON) of every item, in each platform's own shape."""
        for t in self.things:
            yield t.platform, t.id.encode(), orjson.dumps(_ITEM_SHAPES[t.platform](t))

    def events(self, clock: Callable[[], int]) -> Iterator[Emitted]:
        """What happens, without end; `clock` gives the time in ms."""
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
        user = self.featured if r.random() < FEATURED_SHARE else self._users[int(len(self._users) * r.random() ** 2)]
        tastes = self._tastes[user]
        if r.random() < DRIFT * (4 if user == self.featured else 1):
            tastes[r.randrange(len(tastes))] = r.choice(list(TOPICS))
        platform = r.choice(self._platforms[user])
        topic = r.choice(tastes) if r.random() < 0.9 else r.choice(list(TOPICS))
        thing = r.choice(self._by_topic[platform, topic])
        self._serial += 1
        actions = ACTIONS[platform]
        action = r.choices([word for word, _ in actions], [weight for _, weight in actions])[0]
        body = _SHAPES[platform](user, action, thing.id, at_ms, self._serial, r)
        return Emitted(platform, user.encode(), orjson.dumps(body), kind)

    def _broken(self, n: int, now_ms: int) -> Emitted:
        """The n-th broken record: each way of being broken in turn."""
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
            lambda: orjson.dumps([body]),
            lambda: None,
            lambda: b'{"customer": "\xff\xfe"}',
        ]
        return event._replace(value=ways[n % len(ways)]())


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
    return {"viewer": user, "kind": action, "video": {"id": item}, "ts": at_ms / 1000, "watched_ms": r.randint(0, 600_000), "eid": serial}


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
