"""One broker a process for each tier that has one: the embedded one for `broker`, Apache Kafka for `kafka`; and the smallest of presets."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from encoder.config import PRESETS
from streams.demo.embedded_broker import embedded
from testkit.apache import ApacheKafka
from testkit.cluster import Cluster

_numbers = itertools.count()


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[str]:
    with embedded() as address:
        yield address


@pytest.fixture(scope="session")
def apache_kafka() -> Iterator[str]:
    with ApacheKafka() as kafka:
        yield kafka.bootstrap


@pytest.fixture(scope="module")
def bootstrap(request: pytest.FixtureRequest) -> str:
    """The address of the broker of the module's tier."""
    address: str = request.getfixturevalue("apache_kafka" if request.node.get_closest_marker("kafka") else "embedded_broker")
    return address


@pytest.fixture(scope="module")
def one_layer() -> Iterator[None]:
    """Preset xs has one layer, as an export takes as long as there are layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS["xs"], "layers", 1)
        yield


@pytest.fixture
def cluster(bootstrap: str, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes a cluster: settings, topics, workers. Everything it started is stopped at the end."""
    made: list[Cluster] = []

    def make(**settings: object) -> Cluster:
        made.append(Cluster(bootstrap, f"t{os.getpid()}-{next(_numbers)}", tmp_path, settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()
