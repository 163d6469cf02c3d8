"""The command line without a broker: help, settings, and mistakes in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.apache import free_port


def currents(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "streams.commands.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "COLUMNS": "200", **environment})


def test_settings(tmp_path: Path) -> None:
    """Effective settings are printed with their source."""
    done = currents("settings", "--json", CURRENTS_QUERY__PORT="1234", CURRENTS_CONFIG="")
    rows = {row["key"]: row for row in json.loads(done.stdout)}
    assert rows["query.port"] == {"key": "query.port", "value": "1234", "source": "environment"}
    assert "query.port" in currents("settings").stdout


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("settings", "--config", "none.toml"), "none.toml: cannot be read"),
        (("worker", "--config", "none.toml"), "none.toml: cannot be read"),
        (("produce", "none.jsonl", "--platform", "shop"), "none.jsonl: no such file"),
        (("query", "u1"), "no worker answers"),
        (("demo", "--lifecycle", "--users", "5"), "leave out --rate and --users"),
        (("rank", "u1", "shop:1"), "no worker answers"),
    ],
    ids=lambda x: x if isinstance(x, str) else x[0],
)
def test_mistakes(command: tuple[str, ...], says: str) -> None:
    """A user's mistake is one clear line on stderr, exit status 1, and no traceback."""
    done = currents(*command, CURRENTS_QUERY__PORT=str(free_port()))
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.broker  # waits for a broker that is not there
@pytest.mark.parametrize("command", [("topics",), ("tail",), ("dead-letters", "list"), ("dead-letters", "redrive")], ids=" ".join)
def test_no_broker(command: tuple[str, ...]) -> None:
    """Whatever needs a broker says so when none answers."""
    address = f"127.0.0.1:{free_port()}"
    done = currents(*command, CURRENTS_KAFKA__BOOTSTRAP=address)
    assert done.returncode == 1
    assert f"kafka.bootstrap = '{address}'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.broker
def test_check_says_what_to_do() -> None:
    """A check that fails says what to do, and the others are made all the same."""
    done = currents("check", "--json", CURRENTS_KAFKA__BOOTSTRAP=f"127.0.0.1:{free_port()}", CURRENTS_QUERY__PORT=str(free_port()))
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert "Is Kafka up" in rows["broker and topics"]["says"]
    assert rows["tower and encoder"]["ok"]
    assert "docs/mappings.md" in rows["platforms"]["says"]
