"""Runs all systems on one Apache Kafka, in turn, several times, and compares each system's output with the expected output."""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.common import PARTITIONS, events, kafka, platform, send
from benchmarks.peers.environment import ROOT, python
from benchmarks.systems.currents import settings_of
from benchmarks.systems.job import PLATFORM, POLICY, Job, Spec
from schemas.events import encode_event
from schemas.mapping import Rejected
from schemas.profiles import decode_profile, unpack_vector
from streams.audit.windows import latest, offline_windows, wrong
from streams.core.settings import Settings
from streams.ingest.normalise import mappers
from streams.transport.reading import read_topic

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
BATCHED = 256  # windows in a batch that the Quix Streams job collects by hand
COMPARED = 500  # profiles whose vectors are compared


class WrongResult(Exception):
    """A system's windows or profiles are wrong, so its speed has no meaning."""


def unified(n: int, users: int) -> list[tuple[bytes, bytes]]:
    """Return n events as records (key, value) of the unified topic."""
    settings = Settings(kafka={"bootstrap": "-"}, platforms=[platform("-")])
    mapper = mappers(settings)[PLATFORM]
    found = ((key, mapper.events(raw, "", 0, 0, 2**50)) for key, raw in events(n, users))
    return [(key, encode_event(e[0])) for key, e in found if not isinstance(e, Rejected)]


def command(system: str, spec: str) -> list[str]:
    """Return the command of a system's run. Quix Streams and the loop have an environment of their own."""
    module = {"currents": "currents", "stock_faust": "stock_faust", "bare_loop": "loop"}.get(system, "quix")
    interpreter = python("streaming", REQUIREMENTS) if module in ("quix", "loop") else sys.executable
    return [str(interpreter), "-m", f"benchmarks.systems.{module}", spec]


def run(system: str, spec: Spec, rows: list[tuple[bytes, bytes]]) -> dict[str, float]:
    """Do one run. Returns events/s and CPU time per event in µs. Raises WrongResult, or CalledProcessError with the process's output."""
    settings, file = settings_of(spec), Path(spec.folder).with_suffix(".json")
    file.write_text(json.dumps(asdict(spec)))
    if system == "currents":
        subprocess.run([*command(system, str(file)), "prepare"], check=True, cwd=ROOT)
    else:
        asyncio.run(_create(system, spec))
    asyncio.run(send(settings, spec.topic, rows))
    done = subprocess.run(command(system, str(file)), check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    asyncio.run(_check(system, spec, settings, rows))
    return figures


def results(system: str, spec: Spec) -> tuple[str, str]:
    """Return the topics of a system's windows and profiles."""
    if system.startswith("quix"):
        return f"changelog__{spec.prefix}--{spec.topic}--default", spec.profiles
    if system == "stock_faust":
        return f"{spec.prefix}-windows-changelog", f"{spec.prefix}-profiles-changelog"
    return spec.windows, spec.profiles


async def _create(system: str, spec: Spec) -> None:
    """Create a system's topics, except Quix Streams' changelog. Stock Faust itself would create its topics too late for its first events."""
    windows, profiles = results(system, spec)
    names = [spec.topic, profiles] if system.startswith("quix") else [spec.topic, profiles, windows]
    client = AIOKafkaAdminClient(bootstrap_servers=spec.bootstrap)
    await client.start()
    try:
        await client.create_topics([NewTopic(topic, spec.partitions, 1) for topic in names])
    finally:
        await client.close()


async def _check(system: str, spec: Spec, settings: Settings, rows: list[tuple[bytes, bytes]]) -> None:
    windows, profiles = results(system, spec)
    log = [SimpleNamespace(key=k, value=v) for k, v in rows]
    expected, _ = offline_windows(log, {1: PLATFORM}, POLICY)
    found = latest(await read_topic(settings.kafka, windows, spec.partitions))
    if system.startswith("quix"):
        found = {key.split(b"|")[0]: value for key, value in found.items() if b"|" in key}
    if n := wrong(expected, found):
        raise WrongResult(f"{system}: {n} of {len(expected)} windows are wrong")
    stored = latest(await read_topic(settings.kafka, profiles, spec.partitions))
    if missing := expected.keys() - stored.keys():
        raise WrongResult(f"{system}: {len(missing)} of {len(expected)} users have no profile")
    users = sorted(expected)[:COMPARED]
    made = Job(spec)
    want = [unpack_vector(decode_profile(p).vector) for p in made.profiles(users, [expected[u] for u in users], [0] * len(users))]
    got = [unpack_vector(decode_profile(stored[u]).vector) for u in users]
    if (worst := float(np.min(np.sum(np.array(want) * np.array(got), 1)))) < 0.999:
        raise WrongResult(f"{system}: a profile's vector is not what the encoder makes of its window: cosine {worst:.4f}")


def compare(systems: Mapping[str, Mapping[str, Any]], n: int, users: int, runs: int, model: str = "") -> dict[str, dict[str, float]]:
    """Return medians of several runs; the systems run in turn. `systems`: name -> changes of the default Spec; `events`: number of events."""
    rows, found = unified(n, users), {name: list[dict[str, float]]() for name in systems}
    with kafka() as bootstrap, tempfile.TemporaryDirectory(prefix="currents-bench-") as folder:
        usual = Spec(bootstrap, "", n, PARTITIONS, "", "", str(Path(folder) / "items.npz"), model)
        for turn in range(runs):
            for name, other in systems.items():
                prefix = f"{name.replace('_', '-')}-{turn}"
                state = Path(folder) / prefix
                state.mkdir()
                spec = replace(usual, topic=f"{prefix}.events", prefix=prefix, folder=str(state), **other)
                found[name].append(run(name, spec, rows[: spec.events]))
                print(f"{turn + 1} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return {name: _median(each) for name, each in found.items()}


def _median(each: Iterable[dict[str, float]]) -> dict[str, float]:
    rows = list(each)
    return {key: statistics.median(r[key] for r in rows) for key in rows[0]}
