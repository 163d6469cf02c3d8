"""The command line against a broker and a worker."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit.apache import free_port

pytestmark = pytest.mark.broker
NOW = time.time_ns() // 1_000_000
CONFIG = """
[kafka]
bootstrap = "{bootstrap}"
[worker]
prefix = "cli"
partitions = 2
data_dir = "{folder}/data"
[query]
port = {port}
[[platforms]]
name = "shop"
code = 1
preset = "plain"
shared_ids = true
topic = "cli.in"
items_topic = "cli.items"
{more}
"""


class Currents:
    def __init__(self, folder: Path, bootstrap: str) -> None:
        self._values = {"bootstrap": bootstrap, "folder": folder, "port": free_port()}
        self.config = folder / "currents.toml"
        self.configure("")

    def configure(self, more: str) -> None:
        self.config.write_text(CONFIG.format(**self._values, more=more))

    def __call__(self, *arguments: str, stdin: str | None = None, status: int = 0) -> str:
        command = [sys.executable, "-m", "streams.commands.main", *arguments, "--config", str(self.config)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "COLUMNS": "200"})
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stdout + done.stderr

    def json(self, *arguments: str, **more: Any) -> Any:
        return json.loads(self(*arguments, "--json", **more).splitlines()[-1])

    def worker(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-m", "streams.commands.main", "worker", "--config", str(self.config)])


@pytest.fixture(scope="module")
def currents(tmp_path_factory: pytest.TempPathFactory, bootstrap: str) -> Iterator[Currents]:
    """A worker with some events and items."""
    one = Currents(tmp_path_factory.mktemp("cli"), bootstrap)
    assert "is missing" in one("topics", status=1)
    assert "no such" not in one("topics", "--create")
    items = [
        {"id": f"i{n}", "title": title, "categories": ["Kitchen"]} for n, title in enumerate(("Espresso machine", "Coffee grinder", "Garden hose"))
    ]
    one("produce", "-", "--platform", "shop", "--items", stdin="\n".join(map(json.dumps, items)))
    lines = [{"account": "ann", "item": "i0", "behavior": "buy", "time": NOW}, {"account": "bob", "item": "i2", "behavior": "view", "time": NOW}]
    broken = {"account": "cy", "item": "i1", "behavior": "gawp", "time": NOW}
    one("produce", "-", "--platform", "shop", stdin="\n".join(map(json.dumps, [*lines, broken])))
    process = one.worker()
    try:
        until(lambda: [p["user_id"] for p in (one.json("query", u) for u in ("ann", "bob"))] == ["ann", "bob"])
        yield one
    finally:
        process.terminate()
        assert process.wait(30) == 0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if condition():
                return
        except AssertionError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_query(currents: Currents) -> None:
    """A profile is shown with its interests, or as JSON; an unknown user is one clear line."""
    assert "Kitchen" in currents("query", "ann")
    assert len(currents.json("query", "ann", "--vector")["vector"]) == 192
    assert "unknown user 'zoe'" in currents("query", "zoe", status=1)
    both = currents("query", "zoe", "ann", status=1)
    assert "unknown user 'zoe'" in both
    assert "Kitchen" in both


def test_rank(currents: Currents, tmp_path: Path) -> None:
    """Items are ranked by interest, also ones never seen before."""
    content = tmp_path / "new.json"
    content.write_text(json.dumps([{"id": "new", "title": "Espresso cups"}]))
    row = currents.json("rank", "ann", "shop:i0", "shop:i2", "shop:none", "--content", str(content))
    assert [r["item"] for r in row["ranked"]] == ["shop:i0", "new", "shop:i2"]
    assert row["unknown"] == ["shop:none"]
    assert "shop:i0" in currents("rank", "ann", "shop:i0")


def test_tail(currents: Currents) -> None:
    """Profiles are followed, one line each."""
    rows = [json.loads(line) for line in currents("tail", "--from-beginning", "--limit", "2", "--json").splitlines()]
    assert {r["user_id"] for r in rows} <= {"ann", "bob"}
    assert "ann" in currents("tail", "ann", "--from-beginning", "--limit", "1")


def test_topics_and_check(currents: Currents) -> None:
    """Topics are as they should be, and every check says so but the port, which the worker has."""
    assert all(not row["differs"] for row in currents.json("topics"))
    rows = json.loads(currents("check", "--json", status=1).splitlines()[0])
    assert {r["what"] for r in rows if not r["ok"]} == {"data folder", "query port"}


def test_produce_mistakes(currents: Currents, tmp_path: Path) -> None:
    """Mistakes name the line, the platform or the file."""
    assert "line 2: not JSON" in currents("produce", "-", "--platform", "shop", stdin='{"a": 1}\n{', status=1)
    assert "want one of shop" in currents("produce", "-", "--platform", "shp", stdin="", status=1)
    assert "no such file" in currents("produce", str(tmp_path / "none"), "--platform", "shop", status=1)


def test_dead_letters(currents: Currents) -> None:
    """Dead letters are listed and shown, and once the mapping is mended they enter, once however often they are sent."""
    listed = currents.json("dead-letters", "list", "--reason", "unknown-behavior")
    assert listed["counts"] == [{"platform": "shop", "reason": "unknown-behavior", "count": 1}]
    letter = currents.json("dead-letters", "show", listed["newest"][0]["id"])
    assert json.loads(letter["value"])["behavior"] == "gawp"
    assert "no such dead letter" in currents("dead-letters", "show", "9:9", status=1)
    assert currents.json("dead-letters", "redrive", "--dry-run")["still_rejected"]["unknown-behavior"] == 1
    currents.configure('behaviors = { gawp = "view" }')
    assert currents.json("dead-letters", "redrive", "--dry-run")["mended"] == 1
    assert currents.json("dead-letters", "redrive")["mended"] == 1
    assert currents.json("dead-letters", "redrive")["mended"] == 0
    assert currents.json("dead-letters", "redrive", "--all")["mended"] == 1
    until(lambda: currents.json("query", "cy")["events"] == 1)


def test_reader_of_the_docs(currents: Currents, bootstrap: str) -> None:
    """The reader in docs/profiles-topic.md reads profiles as printed there."""
    text = (Path(__file__).parents[3] / "docs" / "profiles-topic.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    code = code.replace("127.0.0.1:9092", bootstrap).replace("currents.profiles", "cli.profiles")
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = asyncio.run(first_line(process))
        process.terminate()
    assert "ann" in line or "bob" in line or "cy" in line


async def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 30)
