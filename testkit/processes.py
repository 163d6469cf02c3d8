"""Starts, watches and kills worker processes."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from testkit.apache import free_port

WAIT_S = 90.0
HTTP = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), trust_env=False)
"""Shared client: a new client reads the certificates, which takes longer than the request."""


def wait_for(what: str, condition: Callable[[], Any], seconds: float = WAIT_S) -> Any:
    """Wait until the condition is true and return its value. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


class WorkerProcess:
    """Owns a `currents worker` process with its own data folder and port."""

    COMMAND, FOLDER, PORT = "worker", "CURRENTS_WORKER__DATA_DIR", "CURRENTS_QUERY__PORT"

    def __init__(self, folder: Path, config: Path, name: str, data_dir: Path | None = None, **environment: str) -> None:
        self.name, self.port = name, int(environment.get(self.PORT) or free_port())
        self.data_dir = data_dir or folder / f"data-{name}"
        self.log = folder / f"{name}-{self.port}.log"
        own = {self.FOLDER: str(self.data_dir), self.PORT: str(self.port)}
        command = [sys.executable, "-m", "streams.commands.main", self.COMMAND, "--config", str(config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **own, **environment})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def says(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str, **more: Any) -> httpx.Response:
        return HTTP.get(self.url + path, timeout=15, **more)

    def post(self, path: str, body: object, **more: Any) -> httpx.Response:
        return HTTP.post(self.url + path, json=body, timeout=15, **more)

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"worker {self.name} ended with {self.process.returncode}:\n{self.says()[-3000:]}")
        try:
            return HTTP.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def ready(self) -> "WorkerProcess":
        wait_for(f"worker {self.name} to be ready", self.is_ready)
        return self

    def owned(self) -> set[int]:
        """Return the worker's tablets; empty if the worker is not ready."""
        return set(self.get("/readyz").json().get("tablets", ())) if self.is_ready() else set()

    def metric(self, name: str) -> float:
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> int:
        if self.process.poll() is None:
            self.go_on()
            self.process.terminate()
        return self.exit()

    def exit(self) -> int:
        """Wait until the worker ends by itself and return its exit status."""
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"waited {WAIT_S:.0f} s for worker {self.name} to end:\n{self.says()[-3000:]}") from None

    def limit_files(self, size: int) -> None:
        """Limit the worker's files to `size` bytes from now on, which simulates a full disk."""
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, size))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.go_on()
            self.kill()


class ReplicaProcess(WorkerProcess):
    """Owns a `currents serve` process with its own data folder and port."""

    COMMAND, FOLDER, PORT = "serve", "CURRENTS_SERVE__DATA_DIR", "CURRENTS_SERVE__PORT"
