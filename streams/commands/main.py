"""The command line `currents`. Thin: every command is a call or two, and a user's mistake is one line on stderr."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from encoder.recipe import Compress
from streams.commands.dead_letters import letters
from streams.commands.releases import releases
from streams.commands.terminal import Config, Json, complain, out, print_json, print_line, print_table, progress, show
from streams.commands.training import register
from streams.core.errors import SettingsError
from streams.core.settings import load, sources

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Currents: interest profiles, seconds fresh.")
app.add_typer(letters, name="dead-letters")
app.add_typer(releases, name="releases")
register(app)

Url = Annotated[str | None, typer.Option(help="A worker's query endpoint; from the settings by default")]


def main() -> None:
    """Run a command; exit status 1 and one line for whatever a user can mend."""
    for library in ("aiokafka", "kafka", "stamina"):  # the command says itself what went wrong; a worker's logs set other levels
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except _problems() as error:
        complain(str(error))
        sys.exit(1)


def _problems() -> tuple[type[Exception], ...]:
    # Imported when something went wrong: a command like `settings` should not wait for the stream engine.
    from encoder.bundle import BundleError
    from encoder.towers import TowerError
    from schemas.archive import ArchiveError
    from streams.commands.profiles import QueryError
    from streams.core.errors import BrokerError, InputError, StorageError
    from streams.demo.embedded_broker import EmbeddedBrokerError
    from streams.offline.retraining import RetrainError
    from streams.releases.bundle_fetch import FetchError
    from streams.releases.release_log import ReleaseError

    ours = (SettingsError, BrokerError, StorageError, BundleError, TowerError, ArchiveError, EmbeddedBrokerError, InputError, QueryError)
    return (*ours, ReleaseError, FetchError, RetrainError, FileNotFoundError)


@app.command()
def broker(port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one")] = 9092, json: Json = False) -> None:
    """Run a Kafka broker to try things on until SIGTERM: in memory, its data end with it (extra `demo`)."""
    import asyncio

    from streams.demo.embedded_broker import until_signalled

    def ready(address: str) -> None:
        print_json({"bootstrap": address}) if json else print_line(f'{address}: a broker in memory; kafka.bootstrap = "{address}"')

    asyncio.run(until_signalled(port, ready))


@app.command()
def worker(config: Config = None) -> None:
    """Run a worker until SIGTERM."""
    import uvloop

    from streams.monitoring.logs import set_up_logging
    from streams.processes.worker import run

    settings = load(config)
    set_up_logging(settings.worker.log_level)
    uvloop.run(run(settings))


@app.command()
def serve(config: Config = None) -> None:
    """Run a read replica of the profile changelog until SIGTERM."""
    import uvloop

    from streams.monitoring.logs import set_up_logging
    from streams.processes.replica import run

    settings = load(config)
    set_up_logging(settings.worker.log_level)
    uvloop.run(run(settings))


@app.command()
def archive(
    once: Annotated[bool, typer.Option("--once", help="Up to the present end of the topics, then stop")] = False,
    config: Config = None,
) -> None:
    """Write the unified topic, events and items, to Parquet until SIGTERM: each record once."""
    from streams.monitoring.logs import set_up_logging
    from streams.processes.archiver import run

    settings = load(config)
    set_up_logging(settings.worker.log_level)
    print_json({"archived": run(settings, once)})


@app.command()
def retrain(
    once: Annotated[bool, typer.Option("--once", help="One run now, or on with the one that was broken off; not by the schedule")] = False,
    compress: Annotated[Compress, typer.Option(help="Once: a variant of what serves instead, in int8 or pruned, through the same gate")] = "",
    config: Config = None,
) -> None:
    """A new release from the live log, gated, aligned and announced as a candidate: by the settings' schedule until SIGTERM."""
    from streams.monitoring.logs import set_up_logging
    from streams.offline.retraining import once as run
    from streams.offline.retraining import scheduled

    settings = load(config)
    set_up_logging(settings.worker.log_level)
    if once or compress:
        print_json(run(settings, compress=compress))
    else:
        scheduled(settings, config)


@app.command()
def topics(
    create: Annotated[bool, typer.Option("--create", help="Make what is missing, the platforms' topics too")] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Say which topics there should be and what differs; exit status 1 if a worker could not run."""
    from streams.transport.topics import asking, differences
    from streams.transport.topics import create as make
    from streams.transport.topics import topics as wanted

    settings = load(config)
    with asking(settings.kafka, 2) as client:
        made = make(client, settings, platforms=True) if create else []
        found = list(differences(client, settings))
    rows: list[dict[str, Any]] = [
        {"topic": t.name, "created": t.name in made, "differs": [w for d, w, _ in found if d.name == t.name]} for t in wanted(settings)
    ]
    if json:
        print_json(rows)
    else:
        for row in rows:
            print_line(f"{row['topic']}: {'; '.join(row['differs']) or ('created' if row['created'] else 'as it should be')}")
    raise typer.Exit(any(fatal for _, _, fatal in found))


@app.command()
def produce(
    file: Annotated[str, typer.Argument(help="JSON lines or a JSON array, gzip or not; a folder of such files; - for standard input")],
    platform: Annotated[str, typer.Option(help="Which platform of the settings")],
    items: Annotated[bool, typer.Option("--items", help="The lines are items")] = False,
    rate: Annotated[float, typer.Option(help="Records a second; 0 = as fast as it goes")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Send lines that are not JSON too")] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Send events (or items) to a platform's topic: one JSON object a line, or the elements of an array."""
    from streams.commands.produce import Sending
    from streams.commands.produce import produce as send
    from streams.commands.records import files_of, records

    settings, sending = load(config), Sending()
    stopped: tuple[type[BaseException], ...] = (*_problems(), KeyboardInterrupt)
    found = records(files_of(file, platform, items), raw)
    try:
        with progress("records") as bar:
            task = bar.add_task("")
            send(settings, found, platform, items, rate, lambda n: bar.update(task, completed=n), sending)
    except stopped as error:
        if sending.acknowledged:
            complain(sending.said() if isinstance(error, KeyboardInterrupt) else f"{error}; {sending.said()}")
            raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        raise
    print_json({"sent": sending.acknowledged}) if json else print_line(f"{sending.acknowledged:,} records sent and acknowledged")
    for warning in sending.warnings():
        complain(warning)


@app.command("map")
def map_file(
    file: Annotated[str, typer.Argument(help="JSON lines, one record a line; - for standard input")],
    platform: Annotated[str, typer.Option(help="Which platform of the settings")],
    items: Annotated[bool, typer.Option("--items", help="The lines are items")] = False,
    limit: Annotated[int, typer.Option(help="Only the first records; 0 = all")] = 20,
    json: Json = False,
    config: Config = None,
) -> None:
    """Try a mapping without Kafka: the events or items of the first lines, and why others become dead letters."""
    from streams.commands.map import mapper_of, rows, show, summary, tried
    from streams.core.errors import InputError

    mapper = mapper_of(load(config), platform)
    if file != "-" and not Path(file).is_file():
        raise InputError(f"{file}: no such file")
    with sys.stdin.buffer if file == "-" else Path(file).open("rb") as lines:
        found = tried(lines, mapper, items, limit)
    print_json(summary(found) | {"rows": list(rows(found))}) if json else show(found)


@app.command()
def query(
    user: Annotated[list[str], typer.Argument(help="User ids")],
    vector: Annotated[bool, typer.Option("--vector", help="The interest vector too")] = False,
    url: Url = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Current interests of users; exit status 1 if one of them is not known."""
    from streams.commands.profiles import profiles, show_profile

    rows, unknown = profiles(load(config), url, user, vector)
    for row in rows:
        print_json(row) if json else show(show_profile(row, out.is_terminal))
    for name in unknown:
        complain(f"unknown user {name!r}")
    raise typer.Exit(bool(unknown))


@app.command()
def rank(
    user: Annotated[str, typer.Argument(help="User id")],
    item: Annotated[list[str] | None, typer.Argument(help="Items as platform:item_id")] = None,
    content: Annotated[Path | None, typer.Option(help="JSON file: a list of {id, title, text, categories}")] = None,
    url: Url = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Items in the order of a user's interest."""
    from streams.commands.profiles import ranking

    row = ranking(load(config), url, user, item or [], content)
    if json:
        print_json(row)
        return
    print_table(("item", "score"), ((ranked["item"], f"{ranked['score']:+.3f}") for ranked in row["ranked"]))
    if row["unknown"]:
        print_line(f"without a vector: {', '.join(row['unknown'])}")


@app.command()
def tail(
    user: Annotated[list[str] | None, typer.Argument(help="Only these users")] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="All profiles there are, then the new ones")] = False,
    limit: Annotated[int, typer.Option(help="Stop after so many; 0 = never")] = 0,
    of_releases: Annotated[bool, typer.Option("--releases", help="Follow the topic of releases instead")] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Follow the profile changelog, one line a profile."""
    from streams.commands.profiles import line, row_of
    from streams.commands.tail import follow, follow_releases

    if of_releases:
        from streams.releases.names import row_of as release_row
        from streams.releases.names import said

        for n, record in enumerate(follow_releases(load(config), from_beginning), 1):
            print_json(release_row(record)) if json else print_line(said(record))
            if n == limit:
                return
    for n, (name, profile) in enumerate(follow(load(config), set(user or ()), from_beginning), 1):
        print_json(row_of(name, profile)) if json else print_line(line(name, profile))
        if n == limit:
            return


@app.command()
def settings(json: Json = False, config: Config = None) -> None:
    """The effective settings, each with where it comes from."""
    rows = [{"key": k, "value": v, "source": s} for k, v, s in sources(load(config), config)]
    if json:
        print_json(rows)
        return
    print_table(("key", "value", "source"), (tuple(row.values()) for row in rows))


@app.command()
def check(json: Json = False, config: Config = None) -> None:
    """Broker, topics, bundle, disk: each with what to do; exit status 1 if one fails."""
    from streams.commands.check import checks

    rows = list(checks(load(config)))
    if json:
        print_json([row._asdict() for row in rows])
    else:
        for row in rows:
            out.print(f"{'[green]ok  [/]' if row.ok else '[red]FAIL[/]'} {row.what}: ", end="")
            print_line(row.says)
    raise typer.Exit(not all(row.ok for row in rows))


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(help="End by itself after so many seconds of events")] = None,
    json: Json = False,
    seed: int = 1,
    rate: Annotated[float | None, typer.Option(help="Events a second; 1,000 by default")] = None,
    users: Annotated[int | None, typer.Option(help="2,000 by default")] = None,
    lifecycle: Annotated[
        bool,
        typer.Option("--lifecycle", help="Tastes drift, an encoder is trained from the log and takes over, two are kept out (extra `train`)"),
    ] = False,
) -> None:
    """The whole path on an embedded broker with a synthetic world."""
    from streams.demo.live import run_demo

    if lifecycle:
        from streams.demo.lifecycle import run_lifecycle

        if rate is not None or users is not None:
            raise SettingsError("demo --lifecycle: its story has a rate and users of its own: leave out --rate and --users")
        raise typer.Exit(run_lifecycle(seconds, json, seed))
    raise typer.Exit(run_demo(seconds, json, seed, 1000.0 if rate is None else rate, 2000 if users is None else users))


if __name__ == "__main__":
    main()
