"""What benchmarks/peers hands to the other environment, and takes back."""

from pathlib import Path

import numpy as np

from benchmarks.peers.exchange import read_scores, write_split
from testkit.training_logs import made_log
from training.evaluate import rank
from training.splits import leave_one_out


def test_exchange(tmp_path: Path) -> None:
    """What another environment is given is the split, and vectors that it hands back rank as the model does; items it does not know come last."""
    log = made_log(40)
    split = leave_one_out(log)
    write_split(log, split, split.valid, tmp_path / "split.npz")
    given = np.load(tmp_path / "split.npz")
    trained = np.flatnonzero(split.trained(len(log.rows)))
    assert given["item"].tolist() == log.items[trained].tolist()
    assert given["user"].tolist() == (np.searchsorted(log.bounds, trained, "right") - 1).tolist()
    for n, (begin, end, target) in enumerate(zip(split.test.begin, split.test.end, split.test.target, strict=True)):
        assert given["test_item"][given["test_case"] == n].tolist() == log.items[begin:end].tolist()
        assert given["test_target"][n] == log.items[target]
    r = np.random.default_rng(0)
    users, items, known = (
        r.random((len(split.test), 4)),
        r.random((log.catalogue.size, 4)),
        np.arange(log.catalogue.size) != log.items[split.test.target[3]],
    )
    np.savez(tmp_path / "model.npz", users=users, items=items, known=known)
    found = rank(read_scores(tmp_path / "model.npz", split.test), log, split.test).rank
    direct = rank(lambda log, some: np.where(known, users[np.searchsorted(split.test.target, some.target)] @ items.T, -9.0), log, split.test).rank
    assert found.tolist() == direct.tolist()
    own = log.items[split.test.begin[3] : split.test.end[3]]
    target = log.items[split.test.target[3]]
    others = np.flatnonzero(log.catalogue.platform == log.catalogue.platform[target])
    assert found[3] == 1 + len(np.setdiff1d(others, [*own, target]))
