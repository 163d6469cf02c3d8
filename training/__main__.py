"""The training process: `currents train`, `evaluate`, `encode`, `export`, `tower` and `retrain` start it with a job file."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from encoder.bundle import BundleError
from encoder.runtime import load_encoder
from encoder.towers import TowerError
from training.job import Job
from training.splits import DataError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)
JobFile = Annotated[Path, typer.Argument(help="JSON of training.job.Job")]
WORSE = 3  # exit status
Out = Annotated[Path, typer.Option(help="Folder of the new bundle")]


def say(text: str) -> None:
    """A line on stderr, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        err.print(text, markup=False)


@app.command()
def train(job_file: JobFile, out: Out, work: Annotated[Path | None, typer.Option(help="Checkpoints and logs; OUT.run by default")] = None) -> None:
    """Train, evaluate against the baselines, export. Exit status 3 where the result is shown to be worse than its start."""
    from training.run import train_and_export

    job = read(job_file)
    must_be_new(out)
    folder = work or out.with_name(out.name + ".run")
    folder.mkdir(parents=True, exist_ok=True)
    made = train_and_export(job, out, folder, say)
    if made is not None:
        bundle, verdict = made
        say(f"{bundle.folder}: {bundle.manifest.version}")
        print(json.dumps({"bundle": str(bundle.folder), "version": bundle.manifest.version, "metrics": bundle.manifest.metrics}))
        if verdict.worse:
            raise typer.Exit(WORSE)


@app.command()
def evaluate(
    job_file: JobFile,
    bundle: str,
    json_lines: Annotated[bool, typer.Option("--json")] = False,
    successive: Annotated[bool, typer.Option(help="Every event of the test span is a target, not each user's last")] = False,
    sasrec: Annotated[int, typer.Option(help="Most epochs of a SASRec that is trained as one more baseline; 0: none")] = 0,
) -> None:
    """A bundle, or `baseline`, beside the baselines on the newest part of a log."""
    from training.run import evaluated, show

    result = evaluated(read(job_file), bundle, successive, say, sasrec)
    if json_lines:
        print(json.dumps(result))
    else:
        show(result)


@app.command()
def encode(job_file: JobFile, bundle: str, out: Annotated[Path, typer.Option(help="Parquet, or .jsonl: one user a row")]) -> None:
    """Interest vectors of every user of a log, offline, by the encoder that a worker would run."""
    from encoder.features import fitted
    from training.log import windows

    job = read(job_file)
    if out.suffix not in (".parquet", ".jsonl"):
        raise DataError(f"{out}: want a name that ends in .parquet or .jsonl")
    if not out.parent.is_dir():
        raise DataError(f"{out}: there is no folder {out.parent}")
    out.open("ab").close()  # what cannot be written is told before the work, not after it
    log, tower = job.load(say)
    encoder = load_encoder(bundle, tower.space_id, tower.dims)
    rows: list[dict[str, Any]] = []
    for a in range(0, len(log.users), 1024):
        users = range(a, min(a + 1024, len(log.users)))
        begin, end = log.bounds[a : users.stop], log.bounds[a + 1 : users.stop + 1]
        features = fitted(windows(log, begin, end, job.window), encoder.max_len, job.window)
        vectors = encoder.encode(features, log.catalogue.table)
        last = log.rows["ts_ms"][end - 1].tolist()
        rows += [
            {"user_id": log.users[u], "last_event_at": t, "encoder_version": encoder.version, "space_id": encoder.space_id, "vector": v.tolist()}
            for u, t, v in zip(users, last, vectors, strict=True)
        ]
    if out.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    else:
        with out.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    say(f"{out}: {len(rows)} users")


@app.command()
def tower(
    job_file: JobFile,
    out: Annotated[Path, typer.Option(help="Folder of the new tower")],
    figures: Annotated[bool, typer.Option(help="Measure it beside the shipped one")] = True,
) -> None:
    """Freeze, fine-tune or distil a Hugging Face text model as the item tower."""
    job = read(job_file)
    from training.tower import make, show

    console = Console(file=sys.stderr)  # not whatever stderr is later: a library's bars are redirected meanwhile
    found = make(job, out, figures, say, console)
    if figures:
        show(found, console)
    say(f'{out}: {found["space_id"]}, made in {found["minutes"]} minutes; encoding.tower = "{out}"')
    print(json.dumps(found))


@app.command()
def retrain(job_file: JobFile, run: Annotated[Path, typer.Option(help="Folder of the run")]) -> None:
    """From a frozen slice to a bundle that the gate has judged; goes on where it was. Exit status 1 and one line where it is refused."""
    from training.retrain import retrain as through

    found = through(read(job_file), run, say)
    if not found["passed"]:
        raise DataError(f"gate: {found['refused']}; the bundle is kept in {run / 'bundle'}")


@app.command()
def export(
    job_file: JobFile,
    out: Out,
    preset: str = "xs",
    model: Annotated[Path | None, typer.Option(help="Bundle whose encoder is exported; without, the untrained one of the preset")] = None,
    int8: Annotated[bool, typer.Option(help="Matrices in int8; refused if it is worse on the test part of the job's log")] = False,
    weights: Annotated[bool, typer.Option(help="The torch encoder too: for warm starts and GPUs")] = True,
) -> None:
    """A bundle of an untrained encoder, or another form of a release."""
    from training.run import exported

    must_be_new(out)
    bundle = exported(read(job_file), out, preset, model, int8, weights, say)
    told = "".join(f", {k} {v}" for k, v in bundle.manifest.metrics.items())
    print(f"{bundle.folder}: {bundle.manifest.version}, {bundle.onnx.stat().st_size >> 10} KiB{told}")


def must_be_new(out: Path) -> None:
    """Before anything that takes long. Raises BundleError."""
    if out.exists():
        raise BundleError(f"{out}: exists; a release is never changed, choose another folder")


def read(path: Path) -> Job:
    """The job. Raises DataError."""
    try:
        return Job.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{'.'.join(map(str, first['loc']))} = {first['input']!r:.100}: {first['msg']}") from None


def main() -> None:
    """Run; a user's mistake is one line on stderr and exit status 1."""
    logging.basicConfig(level=logging.ERROR)
    try:
        app()
    except (DataError, BundleError, TowerError, OSError) as error:
        say(f"currents: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
