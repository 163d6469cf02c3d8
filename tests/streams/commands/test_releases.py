"""`currents releases` against a broker and a worker."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streams.commands.main import app
from testkit.bundles import rewrite, variant
from tests.streams.commands.test_commands import CONFIG
from tests.streams.commands.test_commands import Currents as Subprocesses

pytestmark = pytest.mark.broker
NOW = time.time_ns() // 1_000_000


class Currents(Subprocesses):
    """The commands in this process: a dozen starts of Python would take longer than what is tested."""

    def __call__(self, *arguments: str, stdin: str | None = None, status: int = 0) -> str:
        done = CliRunner().invoke(app, [*arguments, "--config", str(self.config)], input=stdin)
        assert bool(done.exit_code) == bool(status), (done.output, done.exception)
        return done.output + (str(done.exception) if status else "")


@pytest.fixture
def currents(tmp_path: Path, bootstrap: str) -> Currents:
    made = Currents(tmp_path, bootstrap)
    prefix = f"rel{random.getrandbits(48)}"
    made.config.write_text(CONFIG.format(**made._values, more=f'\n[releases]\nallowed_urls = ["{tmp_path}"]').replace('"cli', f'"{prefix}'))
    return made


def until(condition: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def test_life_of_a_release(currents: Currents, tmp_path: Path) -> None:
    """Announced, tried, promoted, gone back from: each is one record, the worker follows, and the list says what it refused."""
    currents("topics", "--create")
    rows = [{"id": f"i{n}", "title": f"{('Green tea', 'Trail shoes', 'Jazz guitar')[n % 3]} {n}", "categories": [f"Kind {n % 3}"]} for n in range(60)]
    currents("produce", "-", "--platform", "shop", "--items", stdin="\n".join(map(json.dumps, rows)))
    events = [{"account": f"u{n % 9}", "item": f"i{(n * 11 + n // 9 * 5) % 60}", "behavior": "view", "time": NOW - 10_000 + n} for n in range(90)]
    currents("produce", "-", "--platform", "shop", stdin="\n".join(map(json.dumps, events)))
    v1, v2 = (Path(variant(tmp_path / n, n, i).bundle) for i, n in enumerate(("v1", "v2")))
    worker = currents.worker()
    try:

        def serving() -> str:
            return str(currents.json("releases", "list")["worker"].get("encoders", {}).get("serving"))

        until(lambda: serving() == "baseline-3")
        assert "there is no candidate" in currents("releases", "promote", status=1)
        assert "nothing was promoted" in currents("releases", "rollback", status=1)
        assert currents.json("releases", "try", "--bundle", str(v1), "--share", "0.5", "--why", "a test")["state"] == "canary"
        until(lambda: currents.json("releases", "list")["worker"]["encoders"]["candidate"] == "v1")
        assert "candidate v1 is on trial" in currents("releases", "try", "--bundle", str(v2), status=1)
        assert currents.json("releases", "promote", "--force")["previous"] == "baseline-3"
        until(lambda: serving() == "v1")
        assert currents.json("releases", "list")["candidate"] is None
        assert currents.json("releases", "promote", "--force", "--bundle", str(v2))["state"] == "promoted"
        until(lambda: serving() == "v2")
        assert currents.json("releases", "rollback", "--why", "worse")["version"] == "v1"
        until(lambda: serving() == "v1")
        assert currents.json("releases", "rollback", "--to", "baseline-3")["bundle"] == ""
        until(lambda: serving() == "baseline-3")
        assert currents.json("releases", "promote", "v2")["version"] == "v2"
        until(lambda: serving() == "v2")

        # a bundle that is broken: refused here, and by the worker where it is written all the same
        rewrite(v1, version="v3", dims=32)
        assert "want (3596, 32), got (3596, 64)" in currents("releases", "promote", "--force", "--bundle", str(v1), status=1)
        currents("releases", "promote", "--force", "--bundle", str(v1), "--no-check")
        refused = until(lambda: currents.json("releases", "list")["worker"]["refused"])
        assert "want (3596, 32)" in refused["v3"]
        assert serving() == "v2"
        assert "refused: v3" in currents("releases", "list")

        shown = currents.json("releases", "show", "v2")
        assert (shown["digest_fits"], shown["manifest"]["version"]) == (True, "v2")
        tailed = [json.loads(row) for row in currents("tail", "--releases", "--from-beginning", "--limit", "7", "--json").splitlines()]
        assert [r["version"] for r in tailed] == ["v1", "v1", "v2", "v1", "baseline-3", "v2", "v3"]

        until(lambda: len(currents.json("query", "u1", "u2")["user_id"]) > 0)
        found = currents.json("releases", "diff", "baseline", "v2")
        assert (found["users"], found["same_space"], found["cosine"]) == (9, False, None)
        assert found["same_of_first_ten"] < 1
        assert abs(sum(i["after"] for i in found["interests"]) - 1) < 1e-2
        same = currents.json("releases", "diff", "v2", "v2", "--users", "5")
        assert (same["same_of_first_ten"], round(same["cosine"], 3), same["users"]) == (1.0, 1.0, 5)
        assert "of the first ten items agree" in currents("releases", "diff", "baseline", "v2")
    finally:
        worker.terminate()
        worker.wait(60)
