"""What the documents say is there."""

import re
import subprocess
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from encoder.recipe import TowerRecipe
from schemas.declaration import PlatformMapping, presets
from schemas.mapping import REASONS
from streams.commands.main import app
from streams.core.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {path.name: path.read_text() for path in DOCS}
KEYS = {
    f"{name}.{key}": f"{ENV_PREFIX}{name.upper()}__{key.upper()}"
    for name, field in Settings.model_fields.items()
    if isinstance(field.default, BaseModel)
    for key in type(field.default).model_fields
}


def marked(page: str, mark: str) -> str:
    """What stands between a page's marks."""
    return TEXT[page].split(f"<!-- {mark} -->\n")[1].split(f"<!-- end of {mark} -->")[0]


def test_every_setting() -> None:
    """docs/settings.md has every setting with its variable, and no other."""
    rows = re.findall(r"^\| `(\w+\.\w+)` \| .*? \| `(\w+)` \| .+ \|$", TEXT["settings.md"], re.M)
    assert dict(rows) == KEYS
    for key in KEYS:
        section, name = key.split(".")
        default = getattr(Settings.model_fields[section].default, name)
        if default not in (None, "", (), {}) and name != "weights":
            assert f"| `{key}` | `{default}` |" in TEXT["settings.md"]


def test_every_key_of_a_tower() -> None:
    """docs/encoder.md has every key of `currents tower` with its default."""
    for name, field in TowerRecipe.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        assert f"| `{name}` | " + (f"`{default}` |" if default != "" else " |") in TEXT["encoder.md"], name


def test_every_mapping_key() -> None:
    """docs/mappings.md has every key of a platform, every preset and every reason."""
    for name in (*PlatformMapping.model_fields, *presets(), *REASONS):
        assert f"`{name}`" in TEXT["mappings.md"] or f"\n{name} = " in TEXT["mappings.md"] or f"[platforms.{name}]" in TEXT["mappings.md"], name


COMMANDS = sorted(
    {
        m
        for text in TEXT.values()
        for m in re.findall(r"currents ((?:dead-letters )?[a-z-]+(?: [^`\n|#;]*)?)", text)
        if not m.startswith(("is", "runs", "has", "makes"))
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str) -> None:
    """Every command in the documents exists, with the options it is shown with."""
    group = typer.main.get_command(app)
    words = line.split()
    if words[0] not in group.commands:  # type: ignore[attr-defined] # prose, such as "currents per core"
        assert words[0] not in line or "--" not in line
        return
    command = group.commands[words.pop(0)]  # type: ignore[attr-defined]
    if hasattr(command, "commands") and words:
        assert words[0].rstrip(",") in command.commands, line
        command = command.commands[words[0].rstrip(",")]
    known = {option for p in command.params for option in p.opts}
    assert {w for w in words if re.fullmatch(r"--[a-z-]+", w)} <= known, line


def test_make_targets() -> None:
    """Every make target in the documents exists."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for text in TEXT.values():
        assert set(re.findall(r"`make ([a-z]+)", text)) <= targets


def test_map_of_rooms() -> None:
    """The README's map names every room and no other, and every file says in its first line what it is."""
    named = set(re.findall(r"^\| `([\w/]+)/`", TEXT["README.md"].split("## The rooms")[1].split("\n## ")[0], re.M))
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [f for f in tracked if f.split("/")[0] in ("schemas", "encoder", "training", "streams") and (ROOT / f).exists()]
    rooms = {f.rsplit("/", 1)[0] for f in files} - {"streams"}
    assert {name for name in named if name.split("/")[0] in ("schemas", "encoder", "training", "streams")} == rooms
    assert all((ROOT / name).is_dir() for name in named)
    for name in files:
        assert (ROOT / name).read_text().startswith('"""'), name


def test_metrics() -> None:
    """Every metric of a process is in docs/operations.md."""
    source = "".join(path.read_text() for path in sorted((ROOT / "streams").rglob("*.py")))
    for name in re.findall(r'"(currents_\w+)"', source):
        assert f"`{name}" in TEXT["operations.md"] or f"`{name}`" in TEXT["operations.md"], name
