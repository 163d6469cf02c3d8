"""What the documents say is there."""

import importlib.util
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from encoder.recipe import TowerRecipe
from schemas.declaration import PlatformMapping, presets
from schemas.mapping import REASONS
from streams.commands.main import app
from streams.core.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCS = {path.name: path for path in sorted(ROOT.glob("*.md"))} | {
    path.relative_to(ROOT / "docs").as_posix(): path for path in sorted((ROOT / "docs").rglob("*.md"))
}
TEXT = {name: path.read_text() for name, path in DOCS.items()}
"""Pages by their name in docs/, or in the root."""
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


def code(text: str) -> Iterator[str]:
    """Code of a page: each line of its blocks, fenced or indented, and each span."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
            yield from () if fenced else re.findall(r"`([^`]+)`", line)
        else:
            yield from re.findall(r"`([^`]+)`", line)


def commands(snippet: str) -> Iterator[list[str]]:
    """The words after each `currents` of a line of code, without the comment, pipes and what follows them."""
    for found in re.finditer(r"(?<![\w.-])currents ([\w-][^|;&#`]*)", snippet):
        yield shlex.split(found[1].replace("…", " "))


def wrong(words: list[str]) -> str | None:
    """What is wrong with the words of a command; None if nothing."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest:
        if (name := rest.pop(0)) not in command.commands:
            return f"there is no command {name}"
        command = command.commands[name]
    flags = {name: p.is_flag or p.count for p in command.params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    given = 0
    while rest:
        if not (word := rest.pop(0)).startswith("-"):
            given += 1
            continue
        name, equals, _ = word.partition("=")
        if name not in flags:
            return f"there is no option {name}"
        if not flags[name] and not equals:
            rest[:1] = []  # its value
    if given > len(arguments) and not any(p.nargs == -1 for p in arguments):
        return f"{given} arguments, it takes {len(arguments)}"
    return None


COMMANDS = sorted({(name, shlex.join(words)) for name, text in TEXT.items() for snippet in code(text) for words in commands(snippet)})


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands(page: str, line: str) -> None:
    """Every command in the documents exists, with its subcommand and the options and arguments it is shown with."""
    assert wrong(shlex.split(line)) is None, f"{page}: currents {line}"


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("Then `currents retrian`.", "there is no command retrian"),
        ("    currents retrian --once    # again", "there is no command retrian"),
        ("After mending: `currents dead-letters redrve`.", "there is no command redrve"),
        ("```\ncurrents worker --nope\n```", "there is no option --nope"),
        ("`nice -n 10 .venv/bin/currents wroker`", "there is no command wroker"),
        ("`A=1 currents worker && currents tial`", "there is no command tial"),
        ("`currents worker twice`", "1 arguments, it takes 0"),
        ("`currents releases rollback --wy x`", "there is no option --wy"),
        ('`currents releases rollback --why "fewer clicks" 1 2`', "2 arguments, it takes 0"),
    ],
)
def test_checker_of_commands(page: str, complaint: str) -> None:
    """A misspelt command, subcommand, option, or an argument too many is found, in spans and in blocks."""
    assert [w for snippet in code(page) for words in commands(snippet) if (w := wrong(words))] == [complaint]


@pytest.mark.parametrize(
    "page",
    [
        "`currents dead-letters`",
        '`currents releases rollback --why "fewer clicks"`',
        "`currents train topic --out=b`",
        "prose on currents retrian",
        "`currents: gate`",
    ],
)
def test_checker_passes(page: str) -> None:
    """What is right, and what is no command, is passed."""
    assert not [words for snippet in code(page) for words in commands(snippet) if wrong(words)]


def test_modules() -> None:
    """Every module that the documents start exists."""
    for name, text in TEXT.items():
        for snippet in code(text):
            for module in re.findall(r"python -m ([\w.]+)", snippet):
                assert importlib.util.find_spec(module) is not None, f"{name}: {module}"


def test_make_targets() -> None:
    """Every make target in the documents exists."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    for name, text in TEXT.items():
        named = {target for snippet in code(text) for target in re.findall(r"(?:^|&& )make ([a-z][a-z-]*)", snippet)}
        assert named <= targets, name


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page; a heading that comes again gets a number."""
    found: Counter[str] = Counter()
    out = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        out.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return out


@pytest.mark.parametrize("name", DOCS)
def test_links(name: str) -> None:
    """Every link leads to a file, and to a heading of it where it names one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[name]):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (DOCS[name].parent / path).resolve() if path else DOCS[name]
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("name", [n for n in DOCS if n not in ("log.md", "CHANGELOG.md")])  # history: names files as they were
def test_files(name: str) -> None:
    """Every file and folder of the project that a page names exists."""
    for snippet in re.findall(r"`([^`\n]+)`", TEXT[name]):
        if re.fullmatch(r"(schemas|encoder|training|streams|testkit|tests|benchmarks|docker|docs)/[\w./-]+", snippet) and "NAME" not in snippet:
            assert (ROOT / snippet).exists(), snippet


def test_map_of_rooms() -> None:
    """The README's map names every room and no other, and every file says in its first line what it is."""
    section = TEXT["README.md"].split("## The rooms")[1].split("\n## ")[0]
    named = {room for cell in re.findall(r"^\| (`.*?) \|", section, re.M) for room in re.findall(r"`([\w/]+)/`", cell)}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [f for f in tracked if f.endswith(".py") and f.split("/")[0] in ("schemas", "encoder", "training", "streams") and (ROOT / f).exists()]
    rooms = {f.rsplit("/", 1)[0] for f in files} - {"streams"}
    folders = {f.split("/")[0] for f in tracked if "/" in f and not f.startswith(".") and (ROOT / f).exists()} - {"streams"}
    assert named == rooms | folders
    for name in files:
        assert (ROOT / name).read_text().startswith('"""'), name


def test_metrics() -> None:
    """Every metric of a process is in docs/operations.md."""
    source = "".join(path.read_text() for path in sorted((ROOT / "streams").rglob("*.py")))
    for name in re.findall(r'"(currents_\w+)"', source):
        assert f"`{name}" in TEXT["operations.md"] or f"`{name}`" in TEXT["operations.md"], name
