"""`currents train`, `evaluate`, `export`, `encode`, `tower`: each starts `training` as a process of its own. `world` writes data to try them on."""

import json as jsonlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from encoder.recipe import TowerRecipe
from streams.commands.terminal import Config, Json, print_json, print_line
from streams.core.errors import SettingsError
from streams.core.settings import Settings, load
from streams.offline.training_process import start

Data = Annotated[
    str,
    typer.Argument(
        help="Folder of <platform>.events.jsonl and .items.jsonl (or .parquet); folder or URL of an archive; or topic, topic:FROM-TO (offsets)"
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="A training setting for this run: key=value")]
BundleFolder = Annotated[str, typer.Argument(help="Folder of a bundle; or baseline")]


def train(
    data: Data,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the new bundle")],
    preset: Annotated[str | None, typer.Option(help="xs, s or l")] = None,
    epochs: int | None = None,
    seed: int | None = None,
    change: Set = None,
    processes: Annotated[int, typer.Option(min=1, help="Training processes: one a GPU, or several on the CPU")] = 1,
    config: Config = None,
) -> None:
    """Train an encoder on a log and export it; a run that was stopped goes on where it was. Exit status 3 if the result is worse than its start.

    Last line: JSON with the bundle's metrics.
    """
    given = {k: v for k, v in (("preset", preset), ("epochs", epochs), ("seed", seed)) if v is not None}
    with job(load(config), data, change, given) as file:
        start(["-m", "training", "train", str(file), "--out", str(out_folder)], processes)


def evaluate(
    bundle: BundleFolder,
    data: Data,
    successive: Annotated[bool, typer.Option("--successive", help="Every event of the test span is a target, not each user's last")] = False,
    sasrec: Annotated[bool, typer.Option("--sasrec", help="Train SASRec with full softmax on the same split, as one more baseline")] = False,
    sasrec_epochs: Annotated[int, typer.Option(min=1, help="Most passes of its training; it stops early")] = 100,
    change: Set = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """A bundle beside the baselines on the newest part of a log: full ranking, slices, intervals; and the behavior task's report."""
    more = [*(["--json"] if json else []), *(["--successive"] if successive else []), *(["--sasrec", str(sasrec_epochs)] if sasrec else [])]
    with job(load(config), data, change, {}) as file:
        start(["-m", "training", "evaluate", str(file), bundle, *more])


def encode(
    bundle: BundleFolder,
    data: Data,
    out_file: Annotated[Path, typer.Option("--out", help="Parquet or .jsonl, one user a row")],
    config: Config = None,
) -> None:
    """Interest vectors of every user of a log, offline."""
    with job(load(config), data, None, {}) as file:
        start(["-m", "training", "encode", str(file), bundle, "--out", str(out_file)])


def export(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the new bundle")],
    model: Annotated[Path | None, typer.Option(help="Bundle whose encoder is exported again; without, the untrained one")] = None,
    preset: str = "xs",
    int8: Annotated[bool, typer.Option("--int8", help="Matrices in int8; refused if rankings on the test part of DATA get worse")] = False,
    data: Annotated[str | None, typer.Option(help="Log for --int8, as for evaluate")] = None,
    weights: Annotated[bool, typer.Option(help="The torch encoder too: for warm starts and GPUs")] = True,
    change: Set = None,
    config: Config = None,
) -> None:
    """Write a bundle: an untrained encoder, or another form of a release."""
    more = [*(["--model", str(model)] if model else []), *(["--int8"] if int8 else []), *([] if weights else ["--no-weights"])]
    with job(load(config), data, change, {}) as file:
        start(["-m", "training", "export", str(file), "--out", str(out_folder), "--preset", preset, *more])


def tower(
    data: Data,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the new tower")],
    mode: Annotated[str, typer.Option(help="frozen: as it is; lora, full: fine-tuned on the events; static: distilled")] = "lora",
    model: Annotated[str | None, typer.Option(help="Hugging Face text model: a name, its folder, or a tower's folder")] = None,
    dims: int | None = None,
    steps: Annotated[int | None, typer.Option(help="Of training")] = None,
    seed: int | None = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="A setting of the tower (docs/encoder.md) or of training: key=value")] = None,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Measure it beside the shipped one, on the test part")] = True,
    config: Config = None,
) -> None:
    """An item tower of any Hugging Face text model, for the setting `encoding.tower`. Last line: JSON with its figures."""
    given = {k: v for k, v in (("mode", mode), ("model", model), ("dims", dims), ("steps", steps), ("seed", seed)) if v is not None}
    with job(load(config), data, change, {}, TowerRecipe().model_dump(mode="json") | given) as file:
        start(["-m", "training", "tower", str(file), "--out", str(out_folder), *([] if figures else ["--no-figures"])])


def world(
    folder: Path,
    events: Annotated[int, typer.Option(help="How many")] = 200_000,
    users: int = 2000,
    seed: int = 1,
    days: Annotated[float, typer.Option(help="Time that they span")] = 30.0,
    until: Annotated[datetime | None, typer.Option(help="When they end, UTC; now by default", formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"])] = None,
    catalogue_seed: Annotated[int, typer.Option(help="Another one: other items of the same topics")] = 1,
    json: Json = False,
) -> None:
    """Write the synthetic world's events and items to a folder, with a settings file: data to train on."""
    from streams.demo.world_files import write_world

    end_ms = None if until is None else int(until.replace(tzinfo=UTC).timestamp() * 1000)
    n = write_world(folder, events, users, seed, days, catalogue_seed, end_ms)
    print_json(n) if json else print_line(f"{folder}: {n['events']:,} events, {n['items']:,} items, and currents.toml")


@contextmanager
def job(
    settings: Settings, data: str | None, change: list[str] | None, given: dict[str, Any], tower_recipe: dict[str, Any] | None = None
) -> Iterator[Path]:
    """The job file of a training process. A --set is the tower's where it has such a key. Raises SettingsError for one that is none."""
    recipe, tower_recipe = settings.training.model_dump(mode="json") | given, tower_recipe or {}
    for pair in change or ():
        key, eq, value = pair.partition("=")
        if not eq or key not in recipe | tower_recipe:
            raise SettingsError(f"--set {pair}: want key=value with one of {', '.join(tower_recipe or recipe)}")
        to = tower_recipe if key in tower_recipe else recipe
        try:
            to[key] = jsonlib.loads(value)
        except ValueError:
            to[key] = value
    with tempfile.TemporaryDirectory(prefix="currents-job-") as folder:
        if data and data.split(":", maxsplit=1)[0] == "topic":
            from streams.offline.log_slices import write_topic

            write_topic(settings, data, Path(folder))
            data = folder
        row = {
            "data": data,
            "platforms": settings.declared(),
            "tower": settings.encoding.tower,
            "earliest_ms": settings.ingest.earliest_ms(),
            "recipe": recipe,
            "tower_recipe": tower_recipe,
            "window": asdict(settings.encoding.policy),
        }
        path = Path(folder) / "job.json"
        path.write_text(jsonlib.dumps(row))
        yield path


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (train, evaluate, encode, export, tower, world):
        app.command()(command)
