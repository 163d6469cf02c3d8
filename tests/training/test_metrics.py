"""Ranks, metrics, baselines, reports."""

import numpy as np
import pytest
import torch

from testkit.training_logs import made_log
from training.evaluate import CHUNK, rank, report
from training.log import EventLog
from training.metrics import METRICS, concentration, coverage, difference, interval, ranked
from training.scorers import aged, decayed_mean, recent_popularity, remembered
from training.splits import Cases, held_out_users, leave_one_out


def test_metrics_by_hand() -> None:
    """Ranks with ties, exclusions and few items; coverage and concentration."""
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [1, 1, 1, 1], [0.9, 0.5, 0.4, 0.1]], np.float32)
    allowed = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
    found, top = ranked(scores, np.array([2, 3, 1]), allowed)
    assert found.tolist() == [3, 4, 1]
    assert top.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, -1]]
    assert METRICS["ndcg@10"](np.array([1, 3, 11])).tolist() == [1.0, 0.5, 0.0]
    none, _ = ranked(np.full((1, 30), np.nan, np.float32), np.array([29]), np.ones((1, 30), bool))
    assert none.tolist() == [30]
    assert coverage(np.array([[0, 1], [1, -1]]), 4) == 0.5
    assert concentration(np.array([[0, 1], [0, 2]]), 10) == 0.5
    assert difference(np.array([1, 20]), np.array([20, 20]), "hr@10")["mean"] == 0.5


def test_cases_of_one_user() -> None:
    """Cases that are all alike within a user say no more than one of each: the interval is that of the users."""
    r = np.random.default_rng(0)
    users = r.random(200)
    whose = np.repeat(np.arange(200), 9)
    low, high = interval(users)
    assert interval(np.repeat(users, 9), users=whose) == pytest.approx((low, high))
    narrow = interval(np.repeat(users, 9))
    assert narrow[1] - narrow[0] < 0.5 * (high - low)
    uneven = interval(np.array([0.0, 0.0, 0.0, 1.0]), users=np.array([5, 5, 5, 2]))
    assert uneven == (0.0, 1.0)


@pytest.mark.parametrize("k", [10, 50])
def test_metrics_beside_torchmetrics(k: int) -> None:
    """Hit rate, NDCG and MRR agree with torchmetrics."""
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg, retrieval_reciprocal_rank

    r = np.random.default_rng(k)
    scores, target = r.random((30, 200)).astype(np.float32), r.integers(0, 200, 30)
    found, _ = ranked(scores, target, np.ones_like(scores, bool))
    for row, t, place in zip(torch.from_numpy(scores), target, found, strict=True):
        relevant = torch.arange(200) == t
        assert float(place <= k) == float(retrieval_hit_rate(row, relevant, top_k=k))
        if k == 10:
            assert METRICS["ndcg@10"](np.array([place]))[0] == pytest.approx(float(retrieval_normalized_dcg(row, relevant, top_k=10)), abs=1e-6)
        assert 1 / place == pytest.approx(float(retrieval_reciprocal_rank(row, relevant)), abs=1e-6)


def test_remembered() -> None:
    """Each case is encoded once, and its vector is found again whatever part of the cases is asked for, in any order."""
    log = made_log(600)
    some = leave_one_out(log).test
    encoded: list[int] = []

    def users(log: EventLog, part: Cases) -> np.ndarray:
        encoded.extend(part.target.tolist())
        return np.stack([part.begin, part.end, part.target], 1).astype(np.float32)

    found = remembered(users, log, some)
    assert sorted(encoded) == sorted(some.target.tolist())
    assert len(encoded) > CHUNK
    part = some.take(np.random.default_rng(0).permutation(len(some))[:40])
    np.testing.assert_array_equal(found(log, part), np.stack([part.begin, part.end, part.target], 1))
    assert len(encoded) == len(some)


def test_popularity_in_time() -> None:
    """Recent popularity counts what happened in the span before a target, and nothing at or after it."""
    log = made_log()
    some = leave_one_out(log).test
    scores = recent_popularity(log, 3_600_000_000)(log, some)
    for row, target in zip(scores, some.target, strict=True):
        assert row.sum() == (log.rows["ts_ms"] < log.rows["ts_ms"][target]).sum()


def test_aged() -> None:
    """An aged model sees neither the newest events that it is denied, nor any at or after the time that it is given; one event it always sees."""
    log = made_log()
    some = leave_one_out(log).test
    seen: list[np.ndarray] = []

    def model(log: EventLog, some: Cases) -> np.ndarray:
        seen.append(some.end)
        return np.zeros((len(some), log.catalogue.size))

    aged(model, events=2)(log, some)
    assert (seen[-1] == np.maximum(some.end - 2, some.begin + 1)).all()
    day = 86_400_000
    aged(model, until=lambda at: at - 5 * day)(log, some)
    ts, target = log.rows["ts_ms"], log.rows["ts_ms"][some.target]
    older = seen[-1] > some.begin + 1
    assert older.any()
    assert (ts[seen[-1] - 1] < target - 5 * day)[older].all()
    assert (ts[np.minimum(seen[-1], some.end - 1)] >= target - 5 * day)[seen[-1] < some.end].all()


def test_report() -> None:
    """A report has every slice with its number of cases, and the decayed mean is found in it."""
    log = made_log()
    some = np.zeros(40, bool)
    some[:25] = True
    split = held_out_users(log, ~some, some)
    found = report(rank(decayed_mean(), log, split.test), log, split, split.test)
    assert found["all"]["cases"] == 25 == found["platform p1"]["cases"] + found["platform p2"]["cases"]
    assert 0 <= found["all"]["hr@10"]["low"] <= found["all"]["hr@10"]["mean"] <= found["all"]["hr@10"]["high"] <= 1
