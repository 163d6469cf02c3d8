"""Addresses that a worker cannot use."""

from collections.abc import Callable

import pytest

from tests.kafka.cluster import Cluster

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("address", ["nowhere.invalid:9092", "127.0.0.1:http", "[x]:9092"])
def test_broker(cluster: Callable[..., Cluster], address: str) -> None:
    """A broker's address where nobody answers, or that is none, is shown as it stands in the settings; exit status 1, no traceback."""
    worker = cluster().worker("a", CURRENTS_KAFKA__BOOTSTRAP=address)
    assert worker.exit() == 1
    assert "Traceback" not in worker.says()
    (line,) = (line for line in worker.says().splitlines() if line.startswith("currents:"))
    assert f"kafka.bootstrap = {address!r}" in line


def test_port_is_taken(cluster: Callable[..., Cluster]) -> None:
    """A query port that is taken is named, and the worker that has it is not disturbed."""
    c = cluster()
    first = c.worker("a").ready()
    second = c.worker("b", CURRENTS_QUERY__PORT=str(first.port))
    assert second.exit() == 1
    assert f"query.port = {first.port}" in second.says()
    assert "Traceback" not in second.says()
    assert first.is_ready()
