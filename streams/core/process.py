"""What a worker makes sure of before it joins the group: topics, data folder, address."""

import asyncio
import contextlib
import fcntl
import gc
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from threadpoolctl import threadpool_limits

from streams.core.errors import SettingsError, StorageError

log = logging.getLogger("currents.worker")
SWITCH_S = 0.0005  # a thread that folds or encodes gives the event loop its turn after this; Python's 5 ms are paid at each of its wakings
READY_S = 0.1
COLLECT = (20_000, 20, 50)  # a lot makes thousands of objects that live no longer than it; Python's (700, 10, 10) looks through them all the while


def one_thread() -> None:
    """numpy's products on one thread: the others of OpenBLAS spin for tens of ms after each, which doubled what a worker's events cost."""
    threadpool_limits(1, "blas")


@contextlib.contextmanager
def tuned() -> Iterator[None]:
    """Thread switches and garbage collection as a process wants them that answers while it computes; as they were afterwards."""
    before, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(*COLLECT)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(before)


async def frozen(ready: Callable[[], bool]) -> None:
    """Once a tuned process is ready, what it has loaded is not looked through by the collector any more: that would hold everything up for tens of
    ms."""
    while not ready():
        await asyncio.sleep(READY_S)
    gc.collect()
    gc.freeze()


def claim(folder: Path, key: str = "worker.data_dir", who: str = "worker") -> TextIO:
    """Hold a folder, which is set as `key`, for this process until the file is closed.

    Raises StorageError when another process has it, or it cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = (Path(folder) / ".lock").open("w")
    except OSError as error:
        raise StorageError(f"{key} = {str(folder)!r}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise StorageError(f"{key} = {str(folder)!r}: another {who} runs in it; give each its own folder") from None
    return file


def listen(host: str, port: int, key: str = "query.port") -> socket.socket:
    """A listening socket; the port is that of the setting `key`. Raises SettingsError for an address that is taken or not here."""
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise SettingsError(f"{key} = {port} on {host}: {error.strerror}; choose another, or 0 for a free one") from None
