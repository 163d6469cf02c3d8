"""The chaos suite's own parts: schedules, shrinking, the network that can be cut."""

import socket
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.runtime import load_encoder
from encoder.towers import load_tower
from tests.chaos.brokers import Ports
from tests.chaos.driver import bundle
from tests.chaos.outages import outages
from tests.chaos.proxy import Network
from tests.chaos.schedule import EVERY_WAY, KINDS, Fault, draw, kills, rebalances, shrink

counts = st.fixed_dictionaries(
    {"kills": st.integers(0, 120), "rebalances": st.integers(0, 80), "broker_stops": st.integers(0, 15), "swaps": st.integers(0, 25)}
)


@settings(max_examples=40, deadline=None)
@given(st.integers(), counts, st.integers(1, 3), st.integers(1, 3))
def test_schedule(seed: int, wanted: dict[str, int], workers: int, brokers: int) -> None:
    """A seed always gives the same schedule, with the wanted numbers; unless the schedule is small, with all ways of all kinds."""
    faults = draw(seed, wanted, workers, brokers)
    assert faults == draw(seed, wanted, workers, brokers)
    drawn = {k: v for k, v in KINDS.items() if v.brokers <= brokers and k != "swap" and not (k == "encoder" and wanted["swaps"])}
    swaps, others = [f for f in faults if f.kind == "swap"], [f for f in faults if f.kind != "swap"]
    there, possible = {(f.kind, f.way) for f in others}, {(k, way) for k, v in drawn.items() for way in v.ways}
    assert len(swaps) == wanted["swaps"]
    assert all(a.way != b.way for a, b in pairwise([Fault("swap", 0, 0, 0, "baseline"), *swaps]))
    assert wanted["swaps"] < 4 or {f.way for f in swaps} == set(KINDS["swap"].ways)
    assert there == possible if wanted["kills"] >= EVERY_WAY else there <= possible
    assert kills(faults, workers) >= wanted["kills"]
    assert rebalances(faults) >= wanted["rebalances"]
    assert sum(f.kind == "broker" for f in faults) >= wanted["broker_stops"]
    assert all(0 <= f.slot < (brokers if f.kind in ("broker", "leader") else workers + 1) for f in faults)


def test_kinds_without_kills() -> None:
    """`draw` ends if none of the wanted kinds has kills."""
    faults = draw(1, {"kills": 20}, 2, 1, ("stop-at", "cut"))
    assert {(f.kind, f.way) for f in faults} == {(kind, way) for kind in ("stop-at", "cut") for way in KINDS[kind].ways}


@settings(deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1, max_size=6), st.integers(41, 60))
def test_shrink(culprits: set[int], n: int) -> None:
    """Shrinking leaves exactly the faults that the failure needs."""
    faults = [Fault("kill", 0, 0, 0, luck=k) for k in range(n)]

    def fails(some: Sequence[Fault]) -> bool:
        return culprits <= {f.luck for f in some}

    assert {f.luck for f in shrink(faults, fails)} == culprits


def test_outages() -> None:
    """An event's outage is the longest silence of the worker's own tablets, and of all other tablets, in seconds, before the next event."""
    rows = {0: [0, 9_000, 10_000, 18_000, 18_100, 90_000], 1: [0, *range(9_500, 60_000, 500)]}
    assert outages(rows, [("dies", 10_500, {0}), ("joins", 11_000, set())]) == {"dies": [(1.0, 0.5)], "joins": [(0.0, 71.9)]}
    rows[0] += [*range(18_200, 60_000, 100)]
    rows[0].sort()
    assert outages(rows, [("dies", 10_500, {0})]) == {"dies": [(8.0, 0.5)]}


@pytest.mark.slow
def test_bundle(tmp_path: Path) -> None:
    """A worker can open the bundle that workers swap to."""
    tower = load_tower("static")
    assert (
        load_encoder(bundle(tmp_path / "bundle"), tower.space_id, tower.dims).version != load_encoder("baseline", tower.space_id, tower.dims).version
    )


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


@pytest.fixture
def echo() -> Iterator[int]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                one, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=lambda s=one: [s.sendall(d) for d in iter(lambda: s.recv(100), b"")], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def test_hold(network: Network, echo: int) -> None:
    """No data pass a link in state `hold`; data in flight arrive after healing."""
    port = Ports().take()
    network.add(0, 0, port, echo)
    client = socket.create_connection(("127.0.0.1", port), 5)
    client.settimeout(5)
    client.sendall(b"one")
    assert client.recv(10) == b"one"
    network.cut([(0, 0)], "hold")
    client.settimeout(0.3)
    client.sendall(b"two")
    with pytest.raises(TimeoutError):
        client.recv(10)
    assert network.links[0, 0].held > 0
    network.cut([(0, 0)], "open")
    client.settimeout(5)
    assert client.recv(10) == b"two"
    client.close()


def test_refuse(network: Network, echo: int) -> None:
    """A link in state `refuse` closes connections and accepts none until it is healed."""
    port = Ports().take()
    network.add(0, 0, port, echo)
    client = socket.create_connection(("127.0.0.1", port), 5)
    client.settimeout(5)
    client.sendall(b"one")
    assert client.recv(10) == b"one"
    network.cut([(0, 0)], "refuse")
    with pytest.raises(ConnectionError):
        _ask(client, b"two")
    with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", port), 5) as other:
        _ask(other, b"three")
    network.cut([(0, 0)], "open")
    with socket.create_connection(("127.0.0.1", port), 5) as other:
        other.settimeout(5)
        _ask(other, b"four")


def _ask(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    if client.recv(10) != data:
        raise ConnectionError("ended")
