"""Every published vector against the encoder that it names: rows as workers make them, and wrong ones."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from encoder.base import Encoder
from encoder.runtime import load_encoder
from encoder.towers import load_tower
from schemas.events import BEHAVIOR_CODE, Event, encode_event
from schemas.items import Item, item_name
from schemas.profiles import Profile, decode_profile, encode_profile, pack_vector, unpack_vector
from schemas.releases import Release
from schemas.windows import Policy, fold, row_of
from streams.audit.vectors import Vectors, check_vectors
from streams.profile.portrait import Style
from streams.profile.profiler import Profiler
from streams.releases.routing import Lineup
from streams.state.item_store import ItemStore, item_rows
from testkit.bundles import variant

TOWER, NAMES, POLICY = load_tower("static"), {1: "shop"}, Policy(16)
USERS, ITEMS, PARTITIONS = 12, 60, 3
V1, V2, V3, DAY_0 = ("v1", "space-a"), ("v2", "space-a"), ("v3", "space-b"), ("baseline-3", TOWER.space_id)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Encoder]:
    """The baseline, two releases of one space, and one of another."""
    folder = tmp_path_factory.mktemp("bundles")
    v1 = variant(folder / "v1", "v1", 1, space_id="space-a")
    v2 = variant(folder / "v2", "v2", 2, 0.1, base=folder / "v1", space_id="space-a")
    releases: list[Release | str] = ["baseline", v1, v2, variant(folder / "v3", "v3", 3, space_id="space-b")]
    return dict(map(loaded, releases))


def loaded(release: Release | str) -> tuple[tuple[str, str], Encoder]:
    encoder = load_encoder(release if isinstance(release, str) else release.bundle, TOWER.space_id, TOWER.dims)
    return (encoder.version, encoder.space_id), encoder


def viewed(user: str, item: str, at: int, number: int) -> Event:
    return Event(1, user, at, number, 1, BEHAVIOR_CODE["view"], item, user)


def record(key: bytes, value: bytes | None, at: int, partition: int = 0) -> Any:
    return SimpleNamespace(key=key, value=value, timestamp=at, partition=partition, offset=at)


class Log:
    """Topics as a worker leaves them whose encoder changes, whose items come late, and whose batches are of several events, some of them late."""

    def __init__(self, encoders: dict[tuple[str, str], Encoder], folder: Path) -> None:
        self._store, self._encoders, self._r = ItemStore(folder / "items", TOWER.space_id, TOWER.dims), encoders, random.Random(1)
        self._lineup = Lineup(encoders[DAY_0])
        style = Style(3, 1, 1e9, np.ones(256), NAMES)
        self._profiler = Profiler(lambda: self._lineup, self._store, style, POLICY)
        self._windows: dict[bytes, bytes] = {}
        self.complete = 0
        """From this row of the changelog on no item came later."""
        self.events, self.items, self.profiles = list[Any](), list[Any](), list[Any]()

    def come(self, numbers: Sequence[int]) -> None:
        """Items become known."""
        rows = item_rows([Item(f"shop:i{n}", f"Green {n % 7} thing {n}", (f"Kind {n % 5}",)) for n in numbers], TOWER, 0)
        for key, value, _ in rows:
            self.items.append(record(key, value, len(self.items), len(key) * 7 % PARTITIONS))
        self._store.apply([(k, v) for k, v, _ in rows], ("items", 0), 0)

    def act(self, times: int) -> None:
        """Batches of one to four events."""
        for _ in range(times):
            user, lot = f"u{self._r.randrange(USERS)}", self._r.randrange(1, 5)
            for _ in range(lot):
                at = 1000 * len(self.events) - self._r.choice((0, 0, 0, 40_000))
                event = viewed(user, f"i{self._r.randrange(ITEMS)}", max(at, 1), len(self.events))
                self.events.append(record(user.encode(), encode_event(event), len(self.events)))
                row = row_of(event, item_name("shop", event.item_id))
                self._windows[user.encode()] = fold(self._windows.get(user.encode()), [row], POLICY)
            self.publish([user.encode()])

    def publish(self, users: Sequence[bytes]) -> None:
        made, _ = self._profiler(users, [self._windows[u] for u in users], [0] * len(users), 1)
        self.profiles += [record(u, p, 0) for u, p in zip(users, made, strict=True)]

    def switch(self, to: tuple[str, str]) -> None:
        """Another encoder serves; half of the users go over."""
        self._lineup = Lineup(self._encoders[to])
        self.publish(sorted(self._windows)[::2])

    def check(self, profiles: Sequence[Any] | None = None, encoders: Sequence[Encoder] | None = None) -> Vectors:
        every = encoders or list(self._encoders.values())
        return check_vectors(self.profiles if profiles is None else profiles, self.events, self.items, every, NAMES, POLICY)


@pytest.fixture(scope="module")
def log(encoders: dict[tuple[str, str], Encoder], tmp_path_factory: pytest.TempPathFactory) -> Log:
    made, numbers = Log(encoders, tmp_path_factory.mktemp("log")), list(range(ITEMS - 4))  # four never come
    random.Random(2).shuffle(numbers)
    for n, encoder in enumerate((DAY_0, V1, V2, V3, V1, DAY_0, V2)):
        made.come(numbers[8 * n : 8 * n + 8])
        made.complete = len(made.profiles)
        made.act(25)
        made.switch(encoder)
        made.act(25)
    made.profiles.append(record(b"u0", None, 0))
    return made


def test_true(log: Log) -> None:
    """Rows of windows that were full, of late events and of items that came late are found true, whatever was served."""
    found = log.check()
    assert (found.rows, found.unknown_releases, found.wrong, found.untold, found.mixed_space_pairs) == (len(log.profiles) - 1, 0, 0, 0, 0)
    assert set(found.releases) == {DAY_0, V1, V2, V3}
    unknown = [decode_profile(r.value).unknown_items for r in log.profiles[:-1]]
    assert sum(n > 4 for n in unknown) > 50
    assert max(decode_profile(r.value).events for r in log.profiles[:-1]) == POLICY.most


def changed(log: Log, maker: tuple[str, str], change: Callable[[Profile], Profile], n: int) -> tuple[list[Any], int]:
    """The changelog with n late rows of a maker changed, of windows with two events on known items or more; how many of its space were not."""
    out, left, others = [], n, 0
    for row in reversed(log.profiles):
        profile = decode_profile(row.value) if row.value else None
        if left and profile and (profile.encoder_version, profile.space_id) == maker and profile.events - profile.unknown_items > 1:
            out.append(record(row.key, encode_profile(change(profile)), 0))
            left -= 1
        else:
            out.append(row)
            others += profile is not None and profile.space_id == maker[1]
    assert not left
    return out, others


def test_half_changed(log: Log) -> None:
    """A vector that no release makes of the window is wrong, and comparable with none of its space."""

    def turned(p: Profile) -> Profile:
        vector = np.roll(np.frombuffer(p.vector, "<f2"), 1)
        return msgspec.structs.replace(p, vector=vector.tobytes())

    profiles, others = changed(log, V2, turned, 3)
    found = log.check(profiles)
    assert (found.wrong, found.unknown_releases, found.mixed_space_pairs) == (3, 0, 3 + 3 * others)
    assert len(found.examples) == 3
    assert all("no release made it" in words for words in found.examples)


@pytest.mark.parametrize(("label", "mixed"), [(V2, False), (V3, True)], ids=["aligned", "other space"])
def test_wrong_label(log: Log, label: tuple[str, str], mixed: bool) -> None:
    """A row that names another release than made it is wrong; what readers would mix counts as pairs only where the spaces differ."""

    def relabelled(p: Profile) -> Profile:
        return msgspec.structs.replace(p, encoder_version=label[0], space_id=label[1])

    profiles, _ = changed(log, V1, relabelled, 4)
    found = log.check(profiles)
    there = sum(decode_profile(r.value).space_id == label[1] for r in log.profiles if r.value)
    assert (found.wrong, found.mixed_space_pairs) == (4, 4 * there if mixed else 0)
    assert all(words.endswith(f"{V1[0]} of {V1[1]} made it") for words in found.examples)


def test_unknown_release(log: Log, encoders: dict[tuple[str, str], Encoder]) -> None:
    """Rows of a release that there was not are counted as that."""
    without = [e for k, e in encoders.items() if k != V3]
    found = log.check(encoders=without)
    n = found.releases[V3]
    assert (found.unknown_releases, found.wrong, found.mixed_space_pairs) == (n, 0, n * (n - 1) // 2)


def test_other_window(log: Log) -> None:
    """A true vector of a window that the user did not have then is wrong, and where several windows may have been meant at least not told."""
    by_user: dict[str, list[Profile]] = {}
    for row in log.profiles[log.complete : -1]:
        p = decode_profile(row.value)
        by_user.setdefault(p.user_id, []).append(p)
    pairs = [pair for found in by_user.values() for pair in pairwise(found) if differ(*pair)]
    assert len(pairs) > 5
    found = log.check([record(b.user_id.encode(), encode_profile(msgspec.structs.replace(b, vector=a.vector)), 0) for a, b in pairs])
    assert found.wrong + found.untold == found.rows == len(pairs)
    assert found.wrong > 0.9 * len(pairs)


def test_untold(log: Log) -> None:
    """A vector that no release makes, of a window some of whose items came later, is told apart from those that are surely wrong."""
    early = next(p for r in log.profiles if (p := decode_profile(r.value)).unknown_items and p.events - p.unknown_items > 2)
    turned = msgspec.structs.replace(early, vector=np.roll(np.frombuffer(early.vector, "<f2"), 1).tobytes())
    found = log.check([*log.profiles, record(early.user_id.encode(), encode_profile(turned), 0)])
    assert (found.wrong, found.untold, found.mixed_space_pairs) == (0, 1, 0)


def differ(a: Profile, b: Profile) -> bool:
    """Whether two profiles in turn are of one release, and of windows that their vectors tell apart."""
    alike = (a.encoder_version, a.space_id) == (b.encoder_version, b.space_id)
    return alike and a.last_event_at < b.last_event_at and bool(np.abs(unpack_vector(a.vector) - unpack_vector(b.vector)).max() > 0.01)


def test_space_that_is_none(log: Log, encoders: dict[tuple[str, str], Encoder], tmp_path: Path) -> None:
    """A release that claims a space which it is far from is comparable with none of it, true as its labels are."""
    (key, far) = loaded(variant(tmp_path / "far", "far", 5, 30.0, space_id="space-a"))
    events = [viewed("new", f"i{n}", n, n) for n in (1, 2)]
    window = fold(None, [row_of(e, item_name("shop", e.item_id)) for e in events], POLICY)
    log_of_new = [record(b"new", encode_event(e), 0) for e in events]
    style = Style(3, 1, 1e9, np.ones(256), NAMES)
    (made,), _ = Profiler(lambda: Lineup(far), log._store, style, POLICY)([b"new"], [window], [0], 1)
    every = [*encoders.values(), far]
    found = check_vectors([*log.profiles, record(b"new", made, 0)], [*log.events, *log_of_new], log.items, every, NAMES, POLICY)
    assert (found.wrong, found.releases[key]) == (0, 1)
    assert found.mixed_space_pairs == found.releases[V1] + found.releases[V2]


def test_empty() -> None:
    """Of nothing there is nothing wrong; a row without items or events is."""
    assert check_vectors([], [], [], [], NAMES, POLICY) == Vectors(0, 0, 0, 0, 0, {}, [])
    alone = Profile("u", 1, 1, 1, 1, 0, "baseline-3", TOWER.space_id, TOWER.dims, "float16-le", pack_vector(np.eye(TOWER.dims)[0]))
    found = check_vectors([record(b"u", encode_profile(alone), 0)], [], [], [loaded("baseline")[1]], NAMES, POLICY)
    assert (found.rows, found.wrong) == (1, 1)
    assert found.examples[0].startswith("partition 0, offset 0, written 0: user 'u', made 1 by baseline-3")
    assert found.examples[0].endswith("the user never had such a window")
