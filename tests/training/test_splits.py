"""What is trained on and what is held out; examples that see nothing of their future."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.config import MASK
from encoder.features import UNKNOWN
from schemas.windows import DTYPE, NO_DWELL, ROW_BYTES, Policy, fold, rows_of
from testkit.training_logs import QUICK, everything, made_log
from training.batches import Batch, batch, epoch
from training.log import EventLog, catalogue, event_log, windows
from training.scorers import decayed_mean
from training.splits import TOO_FEW, Cases, DataError, Split, by_time, cases, elsewhere, enough_cases, held_out_users, leave_one_out


@given(st.integers(0, 1000), st.sampled_from(["next", "all-action"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_leak(seed: int, targets: str, ties: bool) -> None:
    """No input of an example holds anything at or after its target's time, and a target is something that the user did within the horizon."""
    log = made_log(12, seed, ties)
    recipe = QUICK.model_copy(update={"targets": targets, "drop_event": 0.3})
    split = everything(log)
    for n, users in enumerate(epoch(log, split, recipe, seed)):
        made = batch(log, split, recipe, users, (seed, n))
        for b, user in enumerate(users.tolist()):
            own = log.rows[log.bounds[user] : log.bounds[user + 1]]
            rows = log.items[log.bounds[user] : log.bounds[user + 1]]
            length = int(made.inputs["lengths"][b])

            def fair(ts: list[int], b: int = b, own: np.ndarray = own, rows: np.ndarray = rows, made: Batch = made) -> bool:
                longest = 14 * 86_400_000 if targets == "all-action" else 10**13
                later = [own["ts_ms"][rows == t] - at for t, at in zip(made.target[b], ts, strict=False) if t != UNKNOWN]
                return all(((ahead > 0) & (ahead <= longest + 300)).any() for ahead in later)

            found = absolute(made, b, own, rows)
            assert found
            assert any(fair(ts) for ts in found)
            assert (made.target[b, length:] == UNKNOWN).all() or targets == "all-action"


def absolute(made: Batch, b: int, own: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    """Times that the inputs of one example can have: seconds are relative to its first event, which is known by its item."""
    seconds, items, out = made.inputs["seconds"][b], made.inputs["items"][b], []
    for first in own["ts_ms"][rows == items[0]].tolist():
        times = [first + round(1000 * float(s)) for s in seconds[: made.inputs["lengths"][b]]]
        if all(np.abs(own["ts_ms"][rows == i] - t).min(initial=10**12) < 300 for i, t in zip(items.tolist(), times, strict=False)):
            out.append(times)
    return out


def test_hidden() -> None:
    """Where behavior and value are to be predicted, the model sees neither."""
    log = made_log()
    split = everything(log)
    made = batch(log, split, QUICK, np.arange(20), (1,))
    assert made.hidden.any()
    assert (made.inputs["behavior"][made.hidden] == MASK).all()
    assert not made.inputs["numeric"][made.hidden][:, [0, 2]].any()
    assert (made.behavior[made.hidden] > 0).all()
    nameless = (made.inputs["platform"] == 0) & (made.platform > 0)
    assert nameless.any()
    assert (made.inputs["behavior"][~made.hidden] != MASK).all()


def test_chance_is_seeded() -> None:
    """The same seed, epoch and batch give the same example; another epoch gives another."""
    log = made_log()
    split = everything(log)
    a, b, c = (batch(log, split, QUICK, np.arange(10), s) for s in ((1, 2), (1, 2), (1, 3)))
    assert a.inputs["items"].tobytes() == b.inputs["items"].tobytes()
    assert a.inputs["items"].tobytes() != c.inputs["items"].tobytes()
    first, again, second = (epoch(log, split, QUICK, n) for n in (0, 0, 1))
    assert [x.tolist() for x in first] == [x.tolist() for x in again] != [x.tolist() for x in second]
    assert sorted(np.concatenate(first).tolist()) == list(range(40))


def test_time_split() -> None:
    """Training events are before every validation target, those before every test target; inputs are strictly before their target."""
    log = made_log()
    split = by_time(log, 0.2, 0.2)
    ts = log.rows["ts_ms"]
    newest = ts[split.trained(len(ts))].max()
    assert newest < ts[split.valid.target].min() <= ts[split.valid.target].max() < ts[split.test.target].min()
    for some in (split.valid, split.test, by_time(log, 0.2, 0.2, successive=True).test):
        assert (ts[some.end - 1] < ts[some.target]).all()
        assert (log.starts[some.target] == some.begin).all()


@pytest.mark.parametrize("ties", [False, True])
def test_elsewhere(ties: bool) -> None:
    """With a platform held out a case keeps its target and exactly what its user did before it on other platforms."""
    log = made_log(ties=ties)
    some = leave_one_out(log).test
    other, hidden = elsewhere(log, some)
    want = {}
    for begin, end, target in zip(some.begin, some.end, some.target, strict=True):
        before = [r.tobytes() for r in log.rows[begin:end] if r["platform"] != log.rows["platform"][target]]
        if before:
            want[log.rows[target].tobytes()] = before
    assert 0 < len(want) < len(some) or not ties
    got = {other.rows[t].tobytes(): [r.tobytes() for r in other.rows[a:b]] for a, b, t in zip(hidden.begin, hidden.end, hidden.target, strict=True)}
    assert got == want


def test_leave_one_out() -> None:
    """Each user's last two events are held out, and trained on by nobody."""
    log = made_log()
    split = leave_one_out(log)
    held = np.concatenate([split.valid.target, split.test.target])
    assert not split.trained(len(log.rows))[held].any()
    assert (split.test.target == log.bounds[1:] - 1).sum() == len(split.test)
    with pytest.raises(DataError, match=r"too few events: \d+ (validation|training)"):
        leave_one_out(made_log(5))


@pytest.mark.parametrize("policy", [Policy(4), Policy(3, 2), Policy(2, 0, 3), Policy(2, 1, 2)])
def test_windows_of_a_log(policy: Policy) -> None:
    """Windows cut from a log are what the fold makes of the same rows; a scorer under a policy sees these and nothing later."""
    log = made_log(ties=True)
    some = cases(log, log.bounds[1:] - 1)
    found = windows(log, some.begin, some.end, policy)
    for n, (a, b) in enumerate(zip(some.begin, some.end, strict=True)):
        raw = log.rows[a:b].tobytes()
        window = fold(None, [raw[i : i + ROW_BYTES] for i in range(0, len(raw), ROW_BYTES)], policy)
        assert found.rows[n][found.mask[n]].tobytes() == rows_of(window).tobytes()
    if not (policy.per_platform or policy.strong):
        np.testing.assert_array_equal(decayed_mean(64, policy)(log, some), decayed_mean(policy.overall)(log, some))


def small_log(times: dict[str, list[int]], unknown: tuple[int, ...] = ()) -> EventLog:
    """Users' events at these times, all on one item; the rows `unknown` of the log on an item without a vector."""
    items = catalogue(["p1:1"], np.ones((1, 2), np.float32), [1], {1: "p1"})
    users = [user for user, some in times.items() for _ in some]
    rows = np.zeros(len(users), DTYPE)
    rows["ts_ms"], rows["event_id"], rows["dwell_ds"] = [t for some in times.values() for t in some], np.arange(len(users)), NO_DWELL
    rows["item_key"], rows["platform"] = items.table.keys[1], 1
    rows["item_key"][list(unknown)] = 5
    return event_log(users, rows, items)


def listed(some: Cases) -> list[tuple[int, int, int]]:
    return list(zip(some.begin.tolist(), some.end.tolist(), some.target.tolist(), strict=True))


def spanned(split: Split) -> list[tuple[int, int]]:
    return list(zip(split.begin.tolist(), split.end.tolist(), strict=True))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of everything is enough."""
    monkeypatch.setattr("training.splits.TOO_FEW", 1)


def test_input_of_a_case() -> None:
    """An input is all that the user did before the time of the target, without what came at that time; a target that has none is no case."""
    log = small_log({"a": [1, 2, 2, 2, 3], "b": [1, 1, 4]}, unknown=(4,))
    assert listed(cases(log, np.arange(8))) == [(0, 1, 1), (0, 1, 2), (0, 1, 3), (5, 7, 7)]
    assert listed(cases(log, np.array([], np.int64))) == []


@pytest.mark.usefixtures("few")
def test_leave_one_out_by_hand() -> None:
    """Of users with three events or more the last two are held out; users with fewer are trained on whole."""
    log = small_log({"a": [1, 2, 3, 4], "b": [5, 6], "c": [7, 8, 9]})
    split = leave_one_out(log)
    assert spanned(split) == [(0, 2), (4, 6), (6, 7)]
    assert (listed(split.valid), listed(split.test)) == ([(0, 2, 2), (6, 7, 7)], [(0, 3, 3), (6, 8, 8)])
    assert split.trained(9).tolist() == [True, True, False, False, True, True, True, False, False]


@pytest.mark.usefixtures("few")
def test_time_split_by_hand() -> None:
    """The newest shares of the events are held out; what came at the very time of the cut is held out too; all targets only where asked for."""
    log = small_log({"a": [0, 2, 4, 6, 8], "b": [1, 3, 5, 7, 9]})
    split = by_time(log, 0.4, 0.2)
    assert spanned(split) == [(0, 2), (5, 7)]
    assert (listed(split.valid), listed(split.test)) == ([(0, 3, 3), (5, 8, 8)], [(0, 4, 4), (5, 9, 9)])
    every = by_time(log, 0.4, 0.2, successive=True)
    assert spanned(every) == spanned(split)
    assert (listed(every.valid), listed(every.test)) == ([(0, 2, 2), (0, 3, 3), (5, 7, 7), (5, 8, 8)], [(0, 4, 4), (5, 9, 9)])


@pytest.mark.usefixtures("few")
def test_time_split_without_one_user() -> None:
    """Users may have nothing in a part: who was there early only, or came late."""
    log = small_log({"a": [0, 1, 2, 3], "b": [4, 5, 6, 7, 8, 9], "c": [6, 8, 9, 9]})
    split = by_time(log, 0.3, 0.3)
    cut = np.quantile(log.rows["ts_ms"], [0.4, 0.7], method="higher").tolist()
    assert cut == [6, 8]
    assert spanned(split) == [(0, 4), (4, 6), (10, 10)]
    assert (listed(split.valid), listed(split.test)) == ([(4, 7, 7)], [(4, 9, 9), (10, 12, 13)])


def test_users_held_out() -> None:
    """The last event of the users of either mask is held out, of nobody else."""
    log = small_log({"a": [1, 2, 3], "b": [4, 5], "c": [6, 7, 8], "d": [9, 10]})
    split = held_out_users(log, np.array([True, False, False, False]), np.array([False, False, True, False]))
    assert spanned(split) == [(0, 2), (3, 5), (5, 7), (8, 10)]
    assert (listed(split.valid), listed(split.test)) == ([(0, 2, 2)], [(5, 7, 7)])


def test_some_of_the_cases() -> None:
    """At most so many cases are drawn by a seed, in their order, or all given back where there are no more."""
    numbers = np.arange(50)
    some = Cases(numbers, numbers + 1, numbers + 2)
    assert some.at_most(50, 1) is some
    drawn, again, other = some.at_most(20, 1), some.at_most(20, 1), some.at_most(20, 2)
    assert len(drawn) == len(set(drawn.target.tolist())) == 20
    assert drawn.target.tolist() == sorted(drawn.target.tolist()) == again.target.tolist() != other.target.tolist()
    assert listed(some.take(np.array([3, 1]))) == [(3, 4, 5), (1, 2, 3)]


@pytest.mark.parametrize(
    ("train", "valid", "test", "short"),
    [
        (TOO_FEW, TOO_FEW, TOO_FEW, None),
        (TOO_FEW - 1, TOO_FEW, TOO_FEW, "training events"),
        (TOO_FEW, TOO_FEW - 1, TOO_FEW, "validation targets"),
        (TOO_FEW, TOO_FEW, TOO_FEW - 1, "test targets"),
    ],
)
def test_too_few(train: int, valid: int, test: int, short: str | None) -> None:
    """Too little to train on or to test with is an error that counts it, and events on unknown items; a span turned around counts as none."""
    log = small_log({"a": list(range(100))}, unknown=(98, 99))
    numbers = np.arange(100)
    split = Split(np.array([0, 7]), np.array([train, 2]), Cases(numbers[:valid], numbers[:valid], numbers[:valid]), Cases(*[numbers[:test]] * 3))
    if short is None:
        assert enough_cases(split, log) is split
        return
    want = f"too few events: {TOO_FEW - 1} {short} of 100 events in all, 2 of them on items that are not among the items; want at least {TOO_FEW}"
    with pytest.raises(DataError) as error:
        enough_cases(split, log)
    assert str(error.value) == want


def test_too_few_of_known_items() -> None:
    """Where every item is known the error does not speak of unknown ones, and a log without events is told apart."""
    with pytest.raises(DataError, match=r"^too few events: 4 training events of 4 events in all; want at least 20$"):
        leave_one_out(small_log({"a": [1, 2], "b": [3, 4]}))
    with pytest.raises(DataError, match="no events at all"):
        by_time(small_log({}), 0.1, 0.1)
