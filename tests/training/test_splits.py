"""What is trained on and what is held out; examples that see nothing of their future."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.config import MASK
from encoder.features import UNKNOWN
from schemas.windows import ROW_BYTES, Policy, fold, rows_of
from testkit.training_logs import QUICK, everything, made_log
from training.batches import Batch, batch, epoch
from training.log import windows
from training.scorers import decayed_mean
from training.splits import DataError, by_time, cases, elsewhere, leave_one_out


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
