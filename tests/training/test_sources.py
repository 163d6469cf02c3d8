"""Logs from files, and the training commands on them."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow
import pytest
from accelerate.state import AcceleratorState
from pyarrow import parquet

from encoder.bundle import MANIFEST, WEIGHTS, open_bundle
from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.towers import load_tower
from schemas.declaration import PlatformMapping
from schemas.events import UNIFIED_EVENTS, decode_event, encode_event
from schemas.items import UNIFIED_ITEMS, ItemVector, encode_item_vector
from schemas.mapping import Mapper, Rejected
from schemas.windows import Policy
from streams.commands.training import job
from streams.core.settings import Encoding, Settings
from streams.demo.world_files import write_world
from training.__main__ import main
from training.export import export
from training.job import Job
from training.log import EventLog
from training.sources import read_folder, read_unified
from training.splits import DataError, by_time

PLAIN = PlatformMapping.model_validate({"name": "shop", "code": 1, "preset": "plain", "shared_ids": True, "topic": "t", "items_topic": "i"})
TOWER = load_tower("static")
ITEM_LINES = [orjson.dumps({"id": f"i{n}", "title": f"Green tea number {n}"}) for n in range(5)]
START = 1_700_000_000_000
EVENT_LINES = [
    orjson.dumps({"account": f"u{n % 3}", "item": f"i{n % 5}", "behavior": "view", "time": START + n * 1000, "id": str(n)}) for n in range(30)
]


def put(folder: Path, events: list[bytes] = EVENT_LINES, items: list[bytes] | None = ITEM_LINES) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "shop.events.jsonl").write_bytes(b"\n".join(events))
    if items is not None:
        (folder / "shop.items.jsonl").write_bytes(b"\n".join(items))
    return folder


def read(folder: Path, warnings: list[str] | None = None) -> EventLog:
    return read_folder(folder, [PLAIN], TOWER, 0, (warnings if warnings is not None else []).append)


def test_forms_agree(tmp_path: Path) -> None:
    """JSON lines, gzipped or not, Parquet, and the unified topic's bytes give the same log."""
    plain = read(put(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    with gzip.open(tmp_path / "b" / "shop.events.jsonl.gz", "wb") as file:
        file.write(b"\n".join(EVENT_LINES))
    (tmp_path / "b" / "shop.items.jsonl").write_bytes(b"\n".join(ITEM_LINES))
    (tmp_path / "c").mkdir()
    for what, lines in (("events", EVENT_LINES), ("items", ITEM_LINES)):
        parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in lines]), tmp_path / "c" / f"shop.{what}.parquet")
    mapper = Mapper(PLAIN, 0, 0)
    (tmp_path / "d").mkdir()
    events = [mapper.events(line, "t", 0, n, 10**14) for n, line in enumerate(EVENT_LINES)]
    assert not any(isinstance(e, Rejected) for e in events)
    (tmp_path / "d" / UNIFIED_EVENTS).write_bytes(b"".join(encode_event(e) for found in events for e in found))  # type: ignore[union-attr]
    vectors = TOWER.encode([f"Green tea number {n}" for n in range(5)]).astype("<f2")
    rows = [ItemVector(f"shop:i{n}", "", (), TOWER.space_id, TOWER.dims, v.tobytes(), 0) for n, v in enumerate(vectors)]
    (tmp_path / "d" / UNIFIED_ITEMS).write_bytes(b"".join(map(encode_item_vector, rows)))
    for other in (read(tmp_path / "b"), read(tmp_path / "c"), read_unified(tmp_path / "d", {1: "shop"}, TOWER)):
        assert other.rows.tobytes() == plain.rows.tobytes()
        assert (other.users, other.catalogue.names) == (plain.users, plain.catalogue.names)
        np.testing.assert_allclose(other.catalogue.table.vectors, plain.catalogue.table.vectors, atol=1e-3)


def test_cut_topic(tmp_path: Path) -> None:
    """Bytes of the unified topic that end in the middle of a value are refused."""
    mapped = Mapper(PLAIN, 0, 0).events(EVENT_LINES[0], "t", 0, 0, 10**14)
    assert not isinstance(mapped, Rejected)
    data = encode_event(mapped[0])
    assert decode_event(data) == mapped[0]
    (tmp_path / UNIFIED_EVENTS).write_bytes(data + data[:-3])
    (tmp_path / UNIFIED_ITEMS).write_bytes(b"")
    with pytest.raises(DataError, match="cut at byte"):
        read_unified(tmp_path, {1: "shop"}, TOWER)


def test_bad_lines(tmp_path: Path) -> None:
    """Single bad records are left out and told with line, reason and count; mostly bad ones are an error."""
    told: list[str] = []
    log = read(put(tmp_path / "a", [*EVENT_LINES, b"{", b'{"account": "u"}']), told)
    assert len(log.rows) == 30
    assert "2 records left out (not-json 1, no-item 1)" in told[0]
    assert "shop.events.jsonl line 31: not-json" in told[0]
    with pytest.raises(DataError, match="is the mapping right"):
        read(put(tmp_path / "b", [b"{"] * 5))


@pytest.mark.parametrize(
    ("items", "message"), [(None, "platform shop: has events but no items"), ([], "holds no items")], ids=["no file", "empty file"]
)
def test_no_items(tmp_path: Path, items: list[bytes] | None, message: str) -> None:
    """A platform without items is refused by name."""
    with pytest.raises(DataError, match=message):
        read(put(tmp_path / "a", items=items))


def test_no_data(tmp_path: Path) -> None:
    """A folder that is not there, or holds nothing, is refused with what was wanted."""
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no events; want shop.events"):
        read(tmp_path)


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "streams.commands.main", *arguments], capture_output=True, text=True, timeout=280, cwd=cwd, check=False
    )


def test_job(tmp_path: Path) -> None:
    """A training process is told what the workers' windows keep."""
    settings = Settings(encoding=Encoding(window=40, window_per_platform=8, window_strong=6))
    with job(settings, str(tmp_path), ["epochs=3"], {"preset": "l"}) as file:
        told = Job.model_validate_json(file.read_bytes())
    assert (told.window, told.recipe.epochs, told.recipe.preset) == (Policy(40, 8, 6), 3, "l")


@pytest.mark.slow
def test_commands(tmp_path: Path) -> None:
    """A world is written, trained on, evaluated and encoded by the commands; a bundle without weights ranks alike; mistakes are one line."""
    write_world(tmp_path / "w", 12_000, 200, 1, 20)
    config = ["--config", "w/currents.toml"]
    small = ["--set", "dims=32", "--set", "max_len=16", "--set", "log_to=none"]
    done = run("train", "w", "--out", "b", "--preset", "xs", "--epochs", "2", *small, *config, cwd=tmp_path)
    assert done.returncode == 3, done.stderr  # so short a training is worse than the decayed mean that it starts from
    assert "warning: the trained encoder is worse than the one that it began from" in done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"bundle", "version", "metrics"}
    assert "<table>" in (tmp_path / "b.report.html").read_text()
    done = run("evaluate", "b", "w", "--json", "--sasrec", "--sasrec-epochs", "1", *config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["models"]) == [told["version"], "popularity", "popularity, 7 days", "decayed mean", "SASRec, full softmax"]
    assert set(result["behavior"]) == set(result["by platform"][told["version"]]) == {"shop", "video", "news"}
    done = run("encode", "b", "w", "--out", "v.parquet", *config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(tmp_path / "v.parquet").to_pylist()
    assert len(rows) == 200
    assert np.linalg.norm(rows[0]["vector"]) == pytest.approx(1, abs=1e-3)
    done = run("export", "--out", "c", "--model", "b", *config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = [json.loads((tmp_path / folder / "manifest.json").read_text()) for folder in ("b", "c")]
    assert kept[0]["metrics"] == kept[1]["metrics"] == told["metrics"]
    done = run("export", "--out", "e", "--model", "b", "--no-weights", *config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    light, whole = open_bundle(tmp_path / "e"), open_bundle(tmp_path / "b")
    assert WEIGHTS not in light.manifest.files
    assert (light.manifest.version, light.manifest.metrics) == (whole.manifest.version, told["metrics"])
    done = run("evaluate", "e", "w", "--json", *config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    by_graph, trained = (r["models"][told["version"]]["all"]["hr@10"]["mean"] for r in (json.loads(done.stdout), result))
    assert by_graph == pytest.approx(trained, abs=0.01)
    done = run("export", "--out", "d", "--preset", "xs", "--int8", "--data", "w", *config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "d" / "manifest.json").read_text())["metrics"]
    assert measured["hr@10"] == pytest.approx(measured["float32 hr@10"], rel=0.01)
    done = run("train", "w", "--out", "b", *config, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "currents: b: exists; a release is never changed, choose another folder\n"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle for the shipped tower."""
    encoder = SequenceEncoder(preset("xs", TOWER.dims, dims=16, max_len=8, layers=1))
    return export(encoder, tmp_path_factory.mktemp("untrained") / "b", TOWER.space_id, "xs").folder


def of_another_tower(bundle: Path, folder: Path) -> Path:
    shutil.copytree(bundle, folder)
    row = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(row | {"item_space_id": "another"}))
    return folder


MISTAKES: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "out exists": (("train", "JOB", "--out", "BUNDLE"), {}, "a release is never changed"),
    "no folder": (("train", "JOB", "--out", "new"), {"data": "none"}, "none: no such folder"),
    "no events": (("train", "JOB", "--out", "new"), {"data": "."}, "holds no events; want shop.events{.jsonl,.jsonl.gz,.parquet}"),
    "no value": (("train", "JOB", "--out", "new"), {"recipe": {"lr": "fast"}}, "recipe.lr = 'fast': Input should be a valid number"),
    "no key": (("train", "JOB", "--out", "new"), {"recipe": {"speed": 1}}, "recipe.speed = 1: Extra inputs are not permitted"),
    "few": (("train", "JOB", "--out", "new"), {"recipe": {"log_to": "none"}}, "too few events: "),
    "no start": (("train", "JOB", "--out", "new"), {"data": "many", "recipe": {"start": "none"}}, "bundle none: no such folder"),
    "no body": (("train", "JOB", "--out", "new"), {"data": "many", "recipe": {"body": "none", "log_to": "none"}}, "none"),
    "export: no bundle": (("export", "JOB", "--out", "new", "--model", "none"), {}, "bundle none: no such folder"),
    "export: no preset": (("export", "JOB", "--out", "new", "--preset", "m"), {}, "--preset m: want one of xs, s, l"),
    "export: int8 without data": (("export", "JOB", "--out", "new", "--model", "BUNDLE", "--int8"), {"data": None}, "--int8: needs --data, a log"),
    "export: another tower": (("export", "JOB", "--out", "new", "--model", "OTHER"), {}, "item_space_id = 'another', but the tower makes"),
    "evaluate: no bundle": (("evaluate", "JOB", "none"), {"data": "many"}, "bundle none: no such folder"),
    "evaluate: another tower": (("evaluate", "JOB", "OTHER"), {"data": "many"}, "item_space_id = 'another', but the tower makes"),
    "evaluate: few": (("evaluate", "JOB", "BUNDLE"), {}, "of 30 events in all; want at least 20"),
    "encode: another tower": (("encode", "JOB", "OTHER", "--out", "v.jsonl"), {}, "item_space_id = 'another', but the tower"),
    "encode: another form": (("encode", "JOB", "BUNDLE", "--out", "v.csv"), {}, "v.csv: want a name that ends in .parquet or .jsonl"),
    "encode: no folder": (("encode", "JOB", "BUNDLE", "--out", "none/v.jsonl"), {}, "none/v.jsonl: there is no folder none"),
    "encode: a folder": (("encode", "JOB", "BUNDLE", "--out", "folder.jsonl"), {}, "Is a directory: 'folder.jsonl'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(untrained: Path, tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake of the user's is one line on stderr that says what is wrong, and exit status 1."""
    AcceleratorState._reset_state(reset_partial_state=True)
    words, changes, message = MISTAKES[mistake]
    put(tmp_path / "few")
    long = [
        orjson.dumps({**orjson.loads(e), "account": f"u{n % 30}", "id": str(n), "time": START + n * 1000}) for n, e in enumerate(EVENT_LINES * 10)
    ]
    put(tmp_path / "many", long)
    (tmp_path / "folder.jsonl").mkdir()
    other = of_another_tower(untrained, tmp_path / "other") if "OTHER" in words else tmp_path
    job = {"data": "few", "platforms": [PLAIN.model_dump(mode="json")], **changes}
    (tmp_path / "job.json").write_text(json.dumps(job))
    monkeypatch.chdir(tmp_path)
    given = {"JOB": "job.json", "BUNDLE": str(untrained), "OTHER": str(other)}
    monkeypatch.setattr(sys, "argv", ["training", *(given.get(w, w) for w in words)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (1, "")
    assert told.err.splitlines()[-1].startswith("currents: ")
    assert message in told.err.splitlines()[-1]
    assert "Traceback" not in told.err
    assert not (tmp_path / "new").exists()


UNREADABLE = {
    "cut.parquet": lambda data: data[: len(data) // 2],
    "no.parquet": lambda _: b"id,title",
    "empty.parquet": lambda _: b"",
    "flipped.jsonl.gz": lambda _: (z := gzip.compress(b"\n".join(EVENT_LINES)))[:40] + bytes(b ^ 255 for b in z[40:60]) + z[60:],
    "cut.jsonl.gz": lambda _: gzip.compress(b"\n".join(EVENT_LINES))[:-20],
    "no.jsonl.gz": lambda _: b"id,title",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(tmp_path: Path, name: str) -> None:
    """A file that is cut, damaged or of another form is refused by name."""
    kind = name.partition(".")[2]
    put(tmp_path)
    (tmp_path / "shop.events.jsonl").unlink()
    parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in EVENT_LINES]), tmp_path / "whole")
    (tmp_path / f"shop.events.{kind}").write_bytes(UNREADABLE[name]((tmp_path / "whole").read_bytes()))  # type: ignore[no-untyped-call]
    with pytest.raises(DataError, match=rf"shop.events.{kind}: cannot be read: .+"):
        read(tmp_path)


def test_items_of_others(tmp_path: Path) -> None:
    """Events on items that are not there are counted in the error that too few are left."""
    strange = [line.replace(b'"item":"i', b'"item":"x') for line in EVENT_LINES]
    with pytest.raises(DataError, match=r"0 validation targets of 30 events in all, 30 of them on items that are not among the items; want"):
        by_time(read(put(tmp_path, strange)), 0.1, 0.1)


def test_job_is_whole() -> None:
    """A job survives its own JSON."""
    job = Job(data=Path("x"), platforms=(PLAIN,))
    assert Job.model_validate_json(job.model_dump_json()) == job
