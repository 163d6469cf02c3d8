"""`currents dead-letters`: list, show, send again."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from streams.commands.terminal import Config, Json, print_json, print_line, print_table, progress
from streams.core.printable import printable
from streams.core.settings import Settings, load

letters = typer.Typer(no_args_is_help=True, help="Records that could not be used: list, show, send again after a mapping was mended.")


@letters.command("list")
def list_letters(
    reason: str | None = None,
    platform: str | None = None,
    limit: Annotated[int, typer.Option(help="Newest shown")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were sent again since")] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Counts by platform and reason, and the newest, of those that were not sent again."""
    from streams.ingest.redrive import mark_of, marks, open_topics

    settings = load(config)
    open_topics(settings)
    done, _ = asyncio.run(marks(settings))
    every = list(_letters(settings, reason, platform))
    found = [f for f in every if everything or mark_of(f[1]) not in done]
    counts = Counter((letter.platform, letter.reason) for _, letter in found)
    newest = sorted(found, key=lambda f: f[1].at)[-limit:]
    if json:
        totals = [{"platform": p, "reason": r, "count": n} for (p, r), n in counts.most_common()]
        newest_rows = [
            {"id": f"{r.partition}:{r.offset}", "reason": d.reason, "detail": d.detail, "source": f"{d.topic}/{d.partition}@{d.offset}"}
            for r, d in newest
        ]
        print_json({"total": len(found), "sent_again": sum(mark_of(d) in done for _, d in every), "counts": totals, "newest": newest_rows})
        return
    print_table(("platform", "reason", "count"), ((name, why, n) for (name, why), n in counts.most_common()))
    for record, d in newest:
        print_line(f"{record.partition}:{record.offset}", d.reason, d.detail, f"from {d.topic}/{d.partition}@{d.offset}")


@letters.command("show")
def show_letter(id: Annotated[str, typer.Argument(help="PARTITION:OFFSET as listed")], json: Json = False, config: Config = None) -> None:
    """One dead letter with its original bytes."""
    from msgspec.structs import asdict

    from streams.core.errors import InputError

    letter = next((d for r, d in _letters(load(config), None, None) if f"{r.partition}:{r.offset}" == id), None)
    if letter is None:
        raise InputError(f"{id}: no such dead letter, want PARTITION:OFFSET as `currents dead-letters list` shows it")
    row = asdict(letter)
    if json:
        print_json(row)
        return
    for key, value in row.items():
        print_line(f"{key}: {printable(value)}")


@letters.command("redrive")
def redrive_letters(
    everything: Annotated[bool, typer.Option("--all", help="Also letters that were sent again before")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count")] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Map dead letters again with the settings as they are now, and send what is mended, each once. Interrupted, run it again."""
    from streams.ingest.redrive import open_topics, redrive

    settings = load(config)
    open_topics(settings)
    with progress("letters") as bar:
        task = bar.add_task("")
        counts = asyncio.run(redrive(settings, everything, dry_run, lambda n: bar.update(task, completed=n)))
    if json:
        print_json(counts)
        return
    still = ", ".join(f"{n} {reason}" for reason, n in counts["still_rejected"].items()) or "none"
    print_line(f"{counts['mended']} mended{' (dry run)' if dry_run else ' and sent'}; still rejected: {still}")


def _letters(settings: Settings, reason: str | None, platform: str | None) -> Iterator[Any]:
    from streams.ingest.dead_letter_log import dead_letters

    for record, letter in dead_letters(settings):
        if (reason is None or letter.reason == reason) and (platform is None or letter.platform == platform):
            yield record, letter
