"""One Apache Kafka for the whole tier; every test has topics and a group of its own."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.apache import ApacheKafka
from tests.kafka.cluster import Cluster

_numbers = itertools.count()


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    with ApacheKafka() as kafka:
        yield kafka.bootstrap


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
