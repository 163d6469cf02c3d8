"""Imports run one way: schemas <- encoder <- training, streams; and a CPU worker stays light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY = {
    "schemas": {"schemas"},
    "encoder": {"schemas", "encoder"},
    "training": {"schemas", "encoder", "training"},
    "streams": {"schemas", "encoder", "streams"},
}
FILES = [path for package in MAY for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    """A file as it is called from the root."""
    return path.relative_to(ROOT).as_posix()


def package_of(path: Path) -> str:
    """The package that a file belongs to, however deep."""
    return path.relative_to(ROOT).parts[0]


def test_packages_are_found() -> None:
    """Every folder of a package is a package too: a wheel has only those."""
    for package in MAY:
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent.relative_to(ROOT)} has no __init__.py"


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports(path: Path) -> None:
    """A file imports only from its own layer and those below."""
    assert imported(path) & MAY.keys() <= MAY[package_of(path)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries(path: Path) -> None:
    """Schemas know neither Kafka nor torch, the encoder knows no Kafka, the live path no torch; Faust's inside stays in one file."""
    used, layer = imported(path), package_of(path)
    kafka, heavy = {"kafka", "aiokafka", "faust", "rocksdict"}, {"torch", "transformers", "onnx"}
    if layer in ("schemas", "encoder", "training"):
        assert not used & kafka
    if layer == "schemas":
        assert not used & (heavy | {"onnxruntime", "model2vec"})
    if layer == "streams":
        assert not used & heavy
        assert "faust" not in used or path.name in ("faust_batches.py", "faust_app.py", "broker_settings.py")


ROOMS = (
    "core", "monitoring", "transport", "state", "audit", "ingest", "releases", "profile", "serve", "offline", "processes", "demo", "commands",
)  # fmt: skip
"""Of streams/, bottom up: a room imports from itself and from those before it."""


def modules(path: Path) -> set[str]:
    """The modules of the project that a file imports anywhere, also within functions, by dotted name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {name for name in names if (ROOT / (name.replace(".", "/") + ".py")).is_file()}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if package_of(p) == "streams" and p.parent.name != "streams"], ids=name_of)
def test_rooms(path: Path) -> None:
    """A file of streams/ imports only from its own room and from rooms below it; only the command line knows the demo."""
    rooms = {name.split(".")[1] for name in modules(path) if name.startswith("streams.")}
    here = path.relative_to(ROOT).parts[1]
    assert rooms <= set(ROOMS[: ROOMS.index(here) + 1])
    assert "demo" not in rooms or here in ("demo", "commands")


def test_rooms_are_known() -> None:
    """Every folder of streams/ has its place in the order, and holds no more than a dozen files."""
    folders = {p.parent for p in FILES if package_of(p) == "streams"} - {ROOT / "streams"}
    assert {folder.name for folder in folders} == set(ROOMS)
    for folder in folders:
        assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= 12, folder.name


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("streams.commands.profiles", {"faust", "rocksdict", "aiokafka", "onnxruntime"}),
        ("streams.commands.releases", {"faust", "rocksdict", "onnxruntime"}),
        ("streams.releases.release_log", {"faust", "rocksdict", "onnxruntime"}),
        ("streams.releases.names", {"faust", "rocksdict", "onnxruntime"}),
        ("streams.commands.main", {"faust", "rocksdict", "aiokafka", "kafka", "onnxruntime", "torch"}),
    ],
)
def test_light_processes(module: str, absent: set[str]) -> None:
    """A process that only asks or lists loads neither the stream engine nor RocksDB."""
    code = f"import sys, {module}; print(*({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def modules_imported(path: Path, known: set[str]) -> set[str]:
    """The known modules that a file imports at run time, anywhere in it; a package's `__init__` counts where nothing inside it is named."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body for inner in ast.walk(statement)
    }  # fmt: skip
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner_names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner_names & known or {node.module}
    return found & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The names on one circle of a graph, in order, the first again at the end; empty where there is none."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("package", list(MAY))
def test_no_circles(package: str) -> None:
    """No file of a package imports itself through others, at its top or inside a function."""
    paths = {name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in (ROOT / package).rglob("*.py")}
    assert circle({name: modules_imported(path, set(paths)) - {name} for name, path in paths.items()}) == []


def test_circle_is_found(tmp_path: Path) -> None:
    """A circle that goes through a function's import is found; an import for type checkers alone is none."""
    (tmp_path / "a.py").write_text("from p.b import x\n")
    (tmp_path / "b.py").write_text("def f() -> None:\n    from p import a\n")
    (tmp_path / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x\n")
    known = {"p.a", "p.b", "p.c"}
    graph = {f"p.{name}": modules_imported(tmp_path / f"{name}.py", known) for name in ("a", "b", "c")}
    assert graph == {"p.a": {"p.b"}, "p.b": {"p.a"}, "p.c": set()}
    assert sorted(circle(graph)[:-1]) == ["p.a", "p.b"]


def test_worker_is_light() -> None:
    """A worker with the shipped tower and either encoder never imports torch or transformers."""
    code = (
        "import sys; import streams.processes.worker, streams.commands.main, streams.demo.live;"
        "from encoder.towers import load_tower; from encoder.runtime import load_encoder;"
        "t = load_tower('static'); assert t.encode(['green tea']).any();"
        "load_encoder('baseline', t.space_id, t.dims); load_encoder('demo', t.space_id, t.dims);"
        "print(sorted({'torch', 'transformers', 'onnx', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
