"""What a worker does not start with: one clear line, exit status 1, no traceback."""

from collections.abc import Callable

import pytest

from encoder.bundle import ITEMS, ONNX, RESIDUALS, Manifest, publish
from streams.transport.topics import asking
from testkit.cluster import Cluster, WorkerProcess

pytestmark = pytest.mark.kafka


def refused(worker: WorkerProcess, *words: str) -> None:
    """It ended by itself with status 1, one line and no traceback; the line has these words."""
    assert worker.exit() == 1
    lines = [line for line in worker.says().splitlines() if line.startswith("currents:")]
    assert len(lines) == 1, worker.says()
    assert "Traceback" not in worker.says()
    for word in words:
        assert word in lines[0]


def test_missing_platform_topic(cluster: Callable[..., Cluster]) -> None:
    """A platform's topic that does not exist is named, and how to make it."""
    c = cluster()
    with asking(c.settings.kafka) as client:
        client.delete_topics([f"{c.prefix}.in.shop"])
    refused(c.worker("a"), f"{c.prefix}.in.shop", "is missing", "currents topics --create")


def test_no_broker(cluster: Callable[..., Cluster]) -> None:
    """A broker's address where nobody answers, or that is none, is shown as it stands in the settings."""
    c, addresses = cluster(), ("127.0.0.1:1", "nowhere.invalid:9092", "127.0.0.1:http", "[x]:9092")
    workers = [c.worker(f"w{n}", CURRENTS_KAFKA__BOOTSTRAP=address) for n, address in enumerate(addresses)]  # at once: each is patient
    for worker, address in zip(workers, addresses, strict=True):
        refused(worker, f"kafka.bootstrap = {address!r}")


def test_partitions_differ(cluster: Callable[..., Cluster]) -> None:
    """Settings that want other partitions than the topics have are refused."""
    c = cluster()
    refused(c.worker("a", CURRENTS_WORKER__PARTITIONS="8"), "has 4 partitions, want 8", "worker.partitions")


def test_bundle_that_does_not_fit(cluster: Callable[..., Cluster]) -> None:
    """A bundle made for other item vectors, or none at all, is refused with what was wanted."""
    c = cluster()
    folder = c.folder / "bundle"
    publish(folder, Manifest("v1", "space", "other-tower", 8, 16, 32), {ONNX: b"graph", ITEMS: b"graph", RESIDUALS: b"none"})
    refused(c.worker("a", CURRENTS_ENCODING__ENCODER=str(folder)), "item_dims", "16", "encoding.tower")
    refused(c.worker("b", CURRENTS_ENCODING__ENCODER=str(c.folder / "none")), "none", "no such folder")


def test_two_workers_in_one_folder(cluster: Callable[..., Cluster]) -> None:
    """The second worker in a data folder is refused, the first is not disturbed."""
    c = cluster()
    first = c.worker("a").ready()
    refused(c.worker("b", data_dir=first.data_dir), "worker.data_dir", "another worker")
    assert first.is_ready()


def test_port_is_taken(cluster: Callable[..., Cluster]) -> None:
    """A query port that is taken is named."""
    c = cluster()
    first = c.worker("a").ready()
    refused(c.worker("b", CURRENTS_QUERY__PORT=str(first.port)), f"query.port = {first.port}")
    assert first.is_ready()
