"""Starts and stops the training processes of one machine."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec

import typer

from streams.core.errors import SettingsError

GRACE_S = 30.0


def start(arguments: list[str], processes: int = 1) -> None:
    """Run Python with arguments, forward SIGTERM, and exit with its exit status. Raises SettingsError if the extra `train` is not installed.

    Several processes find each other through environment variables, as with torchrun. When one process fails, the others get GRACE_S seconds to
    fail too, and are then terminated, because they would wait for the failed process forever.
    """
    if find_spec("torch") is None or find_spec("accelerate") is None:
        raise SettingsError('training needs torch and its companions: pip install "currents[train]"')
    running = [subprocess.Popen([sys.executable, *arguments], env=environment) for environment in environments(processes)]

    def end(*_: object) -> None:
        for process in running:
            process.terminate()

    previous = signal.signal(signal.SIGTERM, end)
    failed, until = 0, math.inf
    try:
        while None in (codes := [p.poll() for p in running]):
            if not failed and any(codes):
                failed, until = next(c for c in codes if c), time.monotonic() + GRACE_S
            if time.monotonic() > until:
                end()
            with suppress(KeyboardInterrupt, subprocess.TimeoutExpired):  # Ctrl-C reaches the processes themselves
                running[codes.index(None)].wait(0.2 if processes > 1 else None)
    finally:
        signal.signal(signal.SIGTERM, previous)
    code = failed or next((c for c in codes if c), 0)
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


def environments(processes: int) -> list[dict[str, str]]:
    """Return the environment of each training process of this machine, as torch's `env://` initialisation reads it."""
    if processes == 1:
        return [dict(os.environ)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = {**os.environ, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**same, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]
