"""Set-up of a process: threads, garbage collection, the lock of its data folder, its listening socket."""

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
SWITCH_S = 0.0005  # a folding or encoding thread yields the GIL to the event loop after this time; Python's default, 5 ms, delays each wake-up
READY_S = 0.1
COLLECT = (20_000, 20, 50)  # a batch makes thousands of short-lived objects; Python's default, (700, 10, 10), scans them too often


def one_thread() -> None:
    """Limit numpy's matrix products to one thread. Other OpenBLAS threads spin for tens of ms after each product, which doubled an event's cost."""
    threadpool_limits(1, "blas")


@contextlib.contextmanager
def tuned() -> Iterator[None]:
    """Set the thread switch interval and the garbage collector for a process that answers requests while it computes. Restores both at the end."""
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
    """Wait until a tuned process is ready, then exclude its objects from garbage collection. Scanning them stops the process for tens of ms."""
    while not ready():
        await asyncio.sleep(READY_S)
    gc.collect()
    gc.freeze()


def claim(folder: Path, key: str = "worker.data_dir", who: str = "worker") -> TextIO:
    """Lock a folder for this process until the returned file is closed. `key`: the setting that names the folder, for the error message.

    Raises StorageError if another process holds the folder, or if the folder is not writable.
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
    """Return a listening socket. `key`: the setting of the port. Raises SettingsError if the address is in use or not local."""
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise SettingsError(f"{key} = {port} on {host}: {error.strerror}; choose another, or 0 for a free one") from None
