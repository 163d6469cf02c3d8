"""`currents releases`: list, show, diff, try, promote, roll back. Each change is one record on the topic; workers follow it."""

import asyncio
import getpass
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from schemas.releases import Channel, Release
from streams.commands.terminal import Config, Json, complain, print_json, print_line, print_table
from streams.core.settings import Settings, load
from streams.core.settings_errors import masked
from streams.releases.names import clock, encoder_of, fields, find, history_of, line, named, row_of

if TYPE_CHECKING:  # it brings the Kafka client
    from streams.releases.release_log import Announced

releases = typer.Typer(no_args_is_help=True, help="Which encoder is served, which is on trial, and what to change about it.")

Version = Annotated[str | None, typer.Argument(help="A version on the topic; by default the candidate")]
Where = Annotated[str | None, typer.Option("--bundle", help="A bundle that is not announced yet: folder, URL, or baseline")]
Why = Annotated[str, typer.Option("--why", help="For those who read the record later")]
Check = Annotated[bool, typer.Option(help="Fetch and try the bundle here before the record is written")]


@releases.command("list")
def list_releases(
    limit: Annotated[int, typer.Option(help="Newest shown")] = 20,
    url: Annotated[str | None, typer.Option(help="A worker's query endpoint; from the settings by default")] = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """Records of the topic, which of them count, and what a worker makes of them."""
    from streams.commands.profiles import QueryError, health
    from streams.releases.release_log import candidate, heads

    settings = load(config)
    history = history_of(settings)
    counting = {a.offset for a in heads(history).values()}
    waiting = candidate(history)
    rows = [row_of(a) | {"counts": a.offset in counting} for a in history]
    try:
        worker: dict[str, Any] = health(settings, url)
    except QueryError as error:
        worker = {"status": "no answer", "why": str(error)}
    if json:
        print_json({"records": rows[-limit:], "candidate": waiting.version if waiting else None, "worker": worker})
        return
    shown_rows = []
    for a in history[-limit:]:
        counts = "*" if a.offset in counting else ""
        r = a.release
        shown = [r.version, r.state, f"{r.share:.1%}", clock(r.at), r.by, r.why] if r else ["", "not valid", "", "", "", a.problem]
        shown_rows.append((counts, a.offset, a.channel, *shown))
    print_table(("counts", "offset", "channel", "version", "state", "share", "at", "by", "why"), shown_rows)
    print_line("*: the newest valid record of its channel, which workers follow")
    if worker.get("not_followed"):
        print_line(f"not followed: {worker['not_followed']}")
    encoders = worker.get("encoders", {})
    said = f"a worker serves {encoders.get('serving')}" if encoders else f"no worker answers: {worker.get('why', '')}"
    if encoders.get("candidate"):
        said += f", and tries {encoders['candidate']} on {encoders['share']:.1%} of its users"
    print_line(said)
    for what, why in worker.get("refused", {}).items():
        print_line(f"refused: {what}: {why}")
    for alarm in worker.get("drift", []):
        print_line(f"not as it was: {alarm}")


@releases.command("show")
def show_release(version: Version = None, json: Json = False, config: Config = None) -> None:
    """The newest record of a version, and what its bundle says of itself."""
    from streams.releases.bundle_fetch import FetchError, digest_of

    release = find(history_of(load(config)), version)
    row = fields(release)
    if release.bundle:
        try:
            digest, manifest = digest_of(release.bundle)
            row |= {"manifest": manifest, "digest_fits": digest == release.digest}
        except FetchError as error:
            row["manifest"] = str(error)
    if json:
        print_json(row)
        return
    for key, value in row.items():
        print_line(f"{key}: {masked(str(value))}")


@releases.command("diff")
def diff_releases(
    one: Annotated[str, typer.Argument(help="A version on the topic, or the folder or URL of a bundle, or baseline")],
    other: Annotated[str, typer.Argument(help="The other one")],
    users: Annotated[int, typer.Option(help="Sample")] = 200,
    json: Json = False,
    config: Config = None,
) -> None:
    """Two releases on the same users: how much their first ten items differ, which interests move, and which actions stand behind that."""
    from streams.releases.comparison import compare, lines

    settings = load(config)
    history = history_of(settings)
    with tempfile.TemporaryDirectory(prefix="currents-diff-") as folder:
        pair = [encoder_of(settings, named(settings, history, name), Path(folder)) for name in (one, other)]
        found = asyncio.run(compare(settings, pair[0], pair[1], users))
    if json:
        print_json(found)
        return
    for text in lines(found):
        print_line(text)


@releases.command("try")
def try_release(
    version: Version = None,
    bundle: Where = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the users, whom it encodes; 0 is shadow: measured, not published")] = 0.05,
    why: Why = "",
    check: Check = True,
    json: Json = False,
    config: Config = None,
) -> None:
    """Put a candidate on trial: as a canary, or in shadow with --share 0."""
    from streams.releases.release_log import proposed

    settings = load(config)
    history = history_of(settings)
    release = _asked_for(settings, history, version, bundle)
    state = "canary" if share else "shadow"
    tried = msgspec.structs.replace(release, state=state, share=share, at=_now(), by=_me(), why=why)
    _write(settings, "candidate", proposed(history, tried), check, json)


@releases.command("promote")
def promote_release(
    version: Version = None,
    bundle: Where = None,
    why: Why = "",
    force: Annotated[bool, typer.Option("--force", help="Also a release that no gate has judged")] = False,
    check: Check = True,
    json: Json = False,
    config: Config = None,
) -> None:
    """Serve a release from now on: the candidate, a version on the topic, or a bundle (with --force where no gate has judged it)."""
    from streams.releases.release_log import ReleaseError, promoted, serving

    settings = load(config)
    history = history_of(settings)
    release = _asked_for(settings, history, version, bundle)
    if not (force or judged(history, release)):
        raise ReleaseError(
            f"{release.version}: no gate has judged it; `currents retrain` does, `currents releases try` tests it live, --force promotes it"
        )
    before = "" if serving(history) else named(settings, history, settings.encoding.encoder).version
    _write(settings, "serving", promoted(history, release, before, _me(), why, _now(), {}), check, json)


@releases.command("rollback")
def roll_back(
    to: Annotated[str | None, typer.Option(help="A version that was served; the one before by default")] = None,
    trial: Annotated[bool, typer.Option("--candidate", help="End the trial of the candidate instead; what is served stays")] = False,
    why: Why = "",
    check: Check = True,
    json: Json = False,
    config: Config = None,
) -> None:
    """Serve the earlier release again, as it was: nothing is trained."""
    from streams.releases.release_log import ReleaseError, candidate, earlier, ended, restored, serving

    settings = load(config)
    history = history_of(settings)
    if trial:
        tried = candidate(history)
        if tried is None:
            raise ReleaseError("there is no candidate")
        _write(settings, "candidate", ended(tried, _me(), why, _now(), {}), False, json)
        return
    found = earlier(history, to)
    if found is None:  # served before anything was promoted: by the settings
        found = named(settings, history, settings.encoding.encoder)
        served = serving(history)
        wanted = to or (served.previous if served else "")
        if found.version != wanted:
            raise ReleaseError(f"{wanted}: no record of it on the topic; `currents releases promote --bundle` serves any bundle")
    _write(settings, "serving", restored(history, found, _me(), why, _now()), check, json)


def judged(history: Sequence["Announced"], release: Release) -> bool:
    """Whether a gate has judged a release, or it was served before; the day-0 encoder needs none."""
    served = any(a.channel == "serving" and a.release and (a.release.version, a.release.digest) == (release.version, release.digest) for a in history)
    return not release.bundle or served or any(name.endswith(" gained") for name in release.metrics)


def _asked_for(settings: Settings, history: "list[Announced]", version: str | None, bundle: str | None) -> Release:
    """The release that a command names: a bundle's, or one of the topic, the candidate by default. Raises ReleaseError, FetchError."""
    return named(settings, history, bundle) if bundle else find(history, version)


def _write(settings: Settings, channel: Channel, release: Release, check: bool, json: bool) -> None:
    from streams.releases.bundle_fetch import limits_of, within
    from streams.releases.release_log import announce

    if check:
        with tempfile.TemporaryDirectory(prefix="currents-release-") as folder:
            encoder_of(settings, release, Path(folder))
    offset = asyncio.run(announce(settings.kafka, settings.topic("releases"), channel, release))
    if why_not := settings.unfollowed():
        complain(f"warning: workers with these settings do not follow this record: {why_not}")
    if release.bundle and not within(release.bundle, limits_of(settings, settings.worker.data_dir).allowed):
        complain(f"warning: workers with these settings refuse {release.bundle}: it lies in none of releases.allowed_urls")
    row = {"offset": offset, "channel": channel, **fields(release)}
    print_json(row) if json else print_line(f"{channel}: {line(release)} (record {offset})")


def _now() -> int:
    return time.time_ns() // 1_000_000


def _me() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return socket.gethostname()
