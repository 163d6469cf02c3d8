"""The window, its policy and its fold."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import BEHAVIOR_CODE, BEHAVIORS, Event
from schemas.windows import DTYPE, KEY, NO_DWELL, ROW, ROW_BYTES, STRONG, VERSION, Policy, check, fold, kept, newest_ms, row_of, rows_of

GOLDEN = "012e8fa97c9b0100000700000000000000bd10bcab3cde5571030b1e0000009441"


def event(ts_ms: int, event_id: int, **more: object) -> Event:
    return Event(1, "u", ts_ms, event_id, 3, 11, "sku-1", "a", **more)  # type: ignore[arg-type]


def test_golden() -> None:
    """The bytes of a window never change within a version."""
    assert fold(None, [row_of(event(1_767_323_045_678, 7, value=18.5, dwell_s=3.0), "shop:sku-1")], Policy(64)).hex() == GOLDEN


def test_absent_numbers() -> None:
    """What is not known is told from zero; a long dwell is capped."""
    some = [row_of(event(1, 1), "i"), row_of(event(2, 2, value=0.0, dwell_s=0.0), "i"), row_of(event(3, 3, dwell_s=1e9), "i")]
    rows = rows_of(fold(None, some, Policy(9)))
    assert rows["dwell_ds"].tolist() == [NO_DWELL, 0, NO_DWELL - 1]
    assert str(rows["value"].tolist()) == "[nan, 0.0, nan]"


VIEW, BUY, HIDE = (BEHAVIOR_CODE[b] for b in ("view", "buy", "hide"))
rows = st.builds(
    ROW.pack,
    st.integers(0, 12),
    st.integers(0, 2),
    st.integers(0, 1),
    st.integers(0, 2),
    st.sampled_from([VIEW, VIEW, BUY, HIDE]),
    st.just(0),
    st.sampled_from([0.0, 1.0]),
)
histories = st.lists(rows, min_size=1, max_size=60)
limits = st.sampled_from([1, 2, 3, 5, 64])
policies = st.builds(Policy, limits, st.integers(0, 3), st.integers(0, 4))


def offline(all_rows: list[bytes], policy: Policy) -> bytes:
    """The definition, of all rows at once."""
    quotas = policy.per_platform or policy.strong
    strong = {r: BEHAVIORS[r[25]] in STRONG for r in all_rows}
    best: dict[tuple[int, ...], bytes] = {}
    for row in all_rows:
        key = (*KEY.unpack_from(row), row[24]) if quotas else KEY.unpack_from(row)
        other = best.get(key, row)
        best[key] = max(row, other, key=lambda r: (strong[r], r)) if quotas else max(row, other)
    keys = sorted(best)
    found = set(keys[-policy.overall :])
    if policy.per_platform:
        found |= {k for code in range(256) for k in [k for k in keys if k[-1] == code][-policy.per_platform :]}
    if policy.strong:
        found |= set([k for k in keys if strong[best[k]]][-policy.strong :])
    return VERSION + b"".join(best[k] for k in sorted(found))


def split(window: bytes) -> list[bytes]:
    return [window[i : i + ROW_BYTES] for i in range(1, len(window), ROW_BYTES)]


@given(histories, policies)
def test_fold_is_the_policy(some: list[bytes], policy: Policy) -> None:
    """The fold keeps the newest rows overall, of each platform and of the strong ones, one of each key, in order."""
    window = fold(None, some, policy)
    assert window == offline(some, policy)
    assert len(rows_of(window)) <= policy.most
    assert split(window) == sorted(split(window), key=KEY.unpack_from)


@given(histories, policies, st.randoms(use_true_random=False))
def test_order_and_repeats_do_not_matter(some: list[bytes], policy: Policy, random: random.Random) -> None:
    """Any order, any cut into batches and any replay gives the same bytes."""
    shuffled = some * 2
    random.shuffle(shuffled)
    window = None
    while shuffled:
        cut = random.randint(1, len(shuffled))
        window, shuffled = fold(window, shuffled[:cut], policy), shuffled[cut:]
    assert window == fold(None, some, policy)
    assert fold(window, some, policy) == window


@given(st.lists(histories, min_size=2, max_size=4), policies, st.data())
def test_windows_merge(parts: list[list[bytes]], policy: Policy, data: st.DataObject) -> None:
    """Windows of parts of the events, folded together in any order and grouping, are the window of all events."""
    whole = fold(None, [row for part in parts for row in part], policy)
    windows = [fold(None, part, policy) for part in parts]
    while len(windows) > 1:
        one, other = (windows.pop(data.draw(st.integers(0, len(windows) - 1))) for _ in range(2))
        windows.append(fold(one, split(other), policy))
    assert windows == [whole]


@given(histories, policies, policies)
def test_dropped_rows_do_not_matter(some: list[bytes], policy: Policy, other: Policy) -> None:
    """Rows that the policy drops of all could as well never have come, whichever of them are left out."""
    window = fold(None, some, policy)
    left_out = set(some) - set(split(window)) - set(split(fold(None, some, other)))
    assert fold(None, [row for row in some if row not in left_out], policy) == window


@pytest.mark.parametrize("policy", [Policy(1, 1), Policy(1, 0, 1), Policy(1, 1, 1)])
def test_row_that_is_replaced(policy: Policy) -> None:
    """A row that pushed others out and is then replaced by one of another platform or behavior leaves no hole."""

    def row(ts_ms: int, item: int, platform: int, behavior: int) -> bytes:
        return ROW.pack(ts_ms, 7, item, platform, behavior, 0, 0.0)

    newest, older = row(9, 0, 3, VIEW), row(1, 0, 1, BUY)
    pushes, replaces = row(5, 0, 1, BUY), row(5, 1, 2, VIEW)
    assert replaces > pushes
    window = fold(None, [newest, older, pushes], policy)
    assert fold(window, [replaces], policy) == fold(None, [replaces, pushes, older, newest], policy)


def test_strong_row_stays() -> None:
    """Under quotas an event that came as a view and as a purchase is a purchase, whatever its other bytes."""
    view, buy = (ROW.pack(5, 7, item, 1, code, 0, 0.0) for item, code in ((9, VIEW), (1, BUY)))
    for some in ([view, buy], [buy, view]):
        assert split(fold(None, some, Policy(4, 0, 1))) == [buy]
        assert split(fold(None, some, Policy(4))) == [view]


def test_flood() -> None:
    """Thousands of rows of one user at once, a video app's among a shop's, give what one after the other gives."""
    r, policy = random.Random(3), Policy(40, 8, 8)
    code = [VIEW] * 50 + [BUY, HIDE]
    some = [ROW.pack(r.randrange(10**6), r.getrandbits(64), 0, 1 + (r.random() < 0.01), r.choice(code), 0, 0.0) for _ in range(3000)]
    window = fold(None, some, policy)
    assert window == offline(some, policy)
    assert len(rows_of(window)) > 50
    one_by_one = None
    for row in some:
        one_by_one = fold(one_by_one, [row], policy)
    assert one_by_one == window


@given(st.lists(histories, min_size=1, max_size=4), policies)
def test_kept(users: list[list[bytes]], policy: Policy) -> None:
    """Choosing from arrays of several users' rows is the fold of each."""
    resolved = [split(fold(None, some, Policy(10**6, policy.per_platform, policy.strong))) for some in users]  # one row a key, none dropped
    flat = rows_of(VERSION + b"".join(row for some in resolved for row in some))
    owner = np.repeat(np.arange(len(users)), [len(some) for some in resolved])
    mask = kept(flat, owner, policy)
    for n, some in enumerate(resolved):
        assert VERSION + flat[mask & (owner == n)].tobytes() == offline(some, policy)


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x01" + b"x" * 31, b"\x00" + b"x" * 32])
def test_refused(data: bytes) -> None:
    """Bytes that are no window of this version are refused."""
    with pytest.raises(ValueError, match="window of"):
        rows_of(data)


def test_empty() -> None:
    """A window without events is a version byte."""
    assert len(rows_of(VERSION)) == 0


def test_layout() -> None:
    """A row that is packed is read under the names and in the order of the documentation; 65535 is a dwell that is not known."""
    (row,) = rows_of(VERSION + ROW.pack(-1, 2**64 - 1, 2**63, 63, 13, 65535, 0.5))
    assert row.tolist() == (-1, 2**64 - 1, 2**63, 63, 13, NO_DWELL, 0.5)
    assert DTYPE.names == ("ts_ms", "event_id", "item_key", "platform", "behavior", "dwell_ds", "value")


def test_strong_behaviors() -> None:
    """The strong behaviors never change: what windows hold depends on them."""
    assert {"like", "follow", "share", "comment", "save", "cart", "buy", "rate", "hide"} == STRONG


def test_most() -> None:
    """A window can have rows of every quota at once, of 64 platforms."""
    assert (Policy(5).most, Policy(5, 2).most, Policy(5, 2, 3).most) == (5, 133, 136)


def timed(*times: int) -> list[bytes]:
    return [ROW.pack(t, 0, 0, 1, VIEW, 0, 0.0) for t in times]


@pytest.mark.parametrize(
    ("before", "more", "after"),
    [
        ([1, 2], [3], [1, 2, 3]),
        ([2, 3], [1], [1, 2, 3]),
        ([1, 3], [2], [1, 2, 3]),
        ([1, 2, 3], [4], [2, 3, 4]),
        ([1, 2, 3], [4, 5, 6, 7], [5, 6, 7]),
        ([1, 2, 4], [3], [2, 3, 4]),
        ([2, 3, 4], [1], [2, 3, 4]),
        ([1, 2, 3], [1, 2, 3], [1, 2, 3]),
        ([], [3, 1, 2], [1, 2, 3]),
        ([1, 2, 3], [], [1, 2, 3]),
    ],
)
def test_three_newest(before: list[int], more: list[int], after: list[int]) -> None:
    """A window without quotas has places for the newest rows alone: one before them all is taken while there is a place."""
    window = fold(VERSION + b"".join(timed(*before)), timed(*more), Policy(3))
    assert rows_of(window)["ts_ms"].tolist() == after


def test_newest_ms() -> None:
    """The newest time of a window is its last row's."""
    assert newest_ms(fold(None, timed(253_402_300_799_999, 70_000, 300), Policy(3))) == 253_402_300_799_999
    assert newest_ms(fold(None, timed(0), Policy(3))) == 0
    assert newest_ms(VERSION + ROW.pack(2**62 + 1, 2**64 - 1, 0, 1, VIEW, 0, 0.0)) == 2**62 + 1


def test_check() -> None:
    """A window that is one is given back as it is."""
    window = fold(None, timed(1, 2), Policy(3))
    assert check(window) is window


def test_kept_of_many_users() -> None:
    """Rows of hundreds of users and of every platform do not get into each other's way."""
    flat = np.zeros(900, DTYPE)
    flat["platform"], flat["behavior"] = np.arange(900) % 64, BUY
    owner = np.arange(900)
    for policy in (Policy(0, 1), Policy(0, 0, 1), Policy(1)):
        assert kept(flat, owner, policy).all()
    far = flat.copy()
    far["platform"] = 3 - owner // 256
    assert kept(far, owner, Policy(0, 1)).all()
    assert kept(flat, owner // 128, Policy(0, 1)).sum() == 7 * 64 + 4
    assert kept(flat, owner // 128, Policy(0, 0, 1)).sum() == 8
    assert kept(flat[:0], owner[:0], Policy(1, 1, 1)).tolist() == []
