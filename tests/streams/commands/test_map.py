"""`currents map`: a mapping tried on a file."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streams.commands.main import app
from streams.core.errors import SettingsError

SETTINGS = '[[platforms]]\nname = "shop"\ncode = 1\npreset = "plain"\nfilters = [{ path = "test", exists = false }]\n'
LINES = [
    {"account": "a", "item": "[/nope]\x1b[31m", "behavior": "view", "time": 1_709_287_200_000, "value": "much"},
    {"account": "a", "item": "i", "behavior": "gawp", "time": 1_709_287_200_000},
    {"account": "a", "test": True},
    {"account": "a", "item": "j", "behavior": "buy", "time": 1_709_287_200_000},
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "c.toml").write_text(SETTINGS)
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    return str(tmp_path / "c.toml"), str(tmp_path / "e.jsonl")


def run(files: tuple[str, str], *more: str) -> str:
    done = CliRunner().invoke(app, ["map", files[1], "--config", files[0], *more], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_events(files: tuple[str, str]) -> None:
    """Events, counts by reason with an example each, and what was left out; as JSON for scripts."""
    found = json.loads(run(files, "--platform", "shop", "--json"))
    assert [(r["user"], r["item"], r["behavior"]) for r in found["rows"]] == [("shop:a", "[/nope]\x1b[31m", "view"), ("shop:a", "j", "buy")]
    assert (found["records"], found["events"], found["filtered"], found["left_out"]) == (4, 2, 1, {"bad-value": 1})
    assert (found["dead_letters"], found["examples"]["unknown-behavior"]["line"]) == ({"unknown-behavior": 1}, 2)
    assert json.loads(run(files, "--platform", "shop", "--json", "--limit", "1"))["records"] == 1


def test_table(files: tuple[str, str]) -> None:
    """On a terminal what stands in records is data: no markup, no control characters."""
    shown = run(files, "--platform", "shop")
    assert "[/nope]\\x1b[31m" in shown
    assert "unknown-behavior: 1, such as line 2" in shown
    assert "\x1b" not in shown


def test_items(files: tuple[str, str]) -> None:
    """Items are tried with --items."""
    Path(files[1]).write_text('{"id": 1, "title": "Mug", "categories": ["Kitchen"]}\n{"id": 2}\n')
    found = json.loads(run(files, "--platform", "shop", "--items", "--json"))
    assert found["rows"] == [{"item": "shop:1", "title": "Mug", "categories": ["Kitchen"], "text": ""}]
    assert found["dead_letters"] == {"no-title": 1}


def test_unknown_platform(files: tuple[str, str]) -> None:
    """A platform that is not in the settings is named, with those that are."""
    with pytest.raises(SettingsError, match="--platform shoop: not in the settings, want one of shop"):
        run(files, "--platform", "shoop")
