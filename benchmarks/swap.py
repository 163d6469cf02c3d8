"""Swaps the encoder under load and measures the delay of live events, lost or wrong rows, and the rate of re-encoding users.

The encoder's free capacity is measured: the windows a second that the encoding thread encodes beside the same live load when it gets chunks of stored
windows without pause.
"""

import argparse
import asyncio
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.common import PARTITIONS, bench, events, folded, kafka, load, record, send, working
from encoder.features import featurize
from encoder.runtime import load_encoder
from schemas.releases import Release
from streams.audit import windows as verify
from streams.audit.vectors import check_vectors
from streams.core.settings import Settings
from streams.demo.live import settled
from streams.processes.worker import Worker
from streams.releases.release_log import announce
from streams.transport.reading import read_topic
from testkit.bundles import variant

WARM_S, CHUNK = 15, 64
SERVED = "demo"


async def measure(bootstrap: str, folder: Path, options: argparse.Namespace, per_s: float) -> dict[str, float]:
    """Measure ages before a swap, during it, and until all users are re-encoded; re-encoded users a second; and wrong published rows."""
    sections: dict[str, Any] = {"encoding": {"encoder": SERVED}, "releases": {"follow": "on", "reencode_per_s": per_s, "allowed_urls": [str(folder)]}}
    async with bench(bootstrap, **sections) as settings, working(settings) as worker:
        value, age = worker.metrics.value, worker.metrics.age
        sent = await send(settings, settings.platforms[0].topic, events(options.events, options.users))
        await folded(worker, sent)
        process = await load(settings, options.rate, 3600, options.users)
        await asyncio.sleep(WARM_S)
        age.forget()
        await asyncio.sleep(options.quiet)
        before = age.percentiles(99)[0]
        free = await capacity(worker, options.quiet)
        await asyncio.sleep(2)
        release = await asyncio.to_thread(variant, folder / f"v{time.time_ns()}", f"next-{per_s:g}", 1)
        await asyncio.sleep(2)
        age.forget()
        await announce(settings.kafka, settings.topic("releases"), "serving", release)
        while worker.encoder.version != release.version:
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.1)
        loading = age.percentiles(99)[0]
        age.forget()
        began, over = time.perf_counter(), value("currents_released_profiles_total")
        while worker.reencoder.busy():
            await asyncio.sleep(0.02)
        took, again = time.perf_counter() - began, value("currents_released_profiles_total") - over
        during = age.percentiles(99)[0]
        process.terminate()
        await process.wait()
        await settled(worker, math.inf)
        return {
            "age p99 before": round(before), "age p99 until switched": round(loading), "times that before": round(loading / before, 2),
            "switch, ms": round(value("currents_swap_seconds_sum") * 1000, 2),
            "age p99 while users go over": round(during), "times that before, too": round(during / before, 2),
            "users/s": round(again / took), "free capacity, windows/s": round(free), "share of it": round(again / took / free, 2),
            **await truth(worker, settings, release),
        }  # fmt: skip


async def capacity(worker: Worker, seconds: float) -> float:
    """Return the windows a second that the encoder can encode beside live events."""
    windows = [w for tablet in worker.tablets for _, w in tablet.scan("windows")][: 100 * CHUNK]
    chunks = [windows[at : at + CHUNK] for at in range(0, len(windows), CHUNK)]
    loop, policy, done, began = asyncio.get_running_loop(), worker.settings.encoding.policy, 0, time.perf_counter()

    def encode(chunk: list[bytes]) -> np.ndarray:
        return worker.encoder.encode(featurize(chunk, worker.store.table, policy.most), worker.store.table)

    while (took := time.perf_counter() - began) < seconds:
        chunk = chunks[done // CHUNK % len(chunks)]
        await loop.run_in_executor(worker.encoding_pool, encode, chunk)
        done += len(chunk)
    return done / took


async def truth(worker: Worker, settings: Settings, release: Release) -> dict[str, float]:
    """Return the numbers of windows that differ from the fold of the whole log, and of published vectors that the named release does not make."""
    names, policy = {p.code: p.name for p in settings.platforms}, settings.encoding.policy
    log, profiles, items = [await read_topic(settings.kafka, settings.topic(n), PARTITIONS) for n in ("events", "profiles", "item-vectors")]
    expected, _ = verify.offline_windows(log, names, policy)
    stored = {user: window for tablet in worker.tablets for user, window in tablet.scan("windows")}
    encoders = [load_encoder(name, worker.tower.space_id, worker.tower.dims) for name in (SERVED, release.bundle)]
    found = await asyncio.to_thread(check_vectors, profiles, log, items, encoders, names, policy)
    wrong = found.wrong + found.unknown_releases
    return {"events": len(log), "windows wrong": verify.wrong(expected, stored), "vectors wrong": wrong, "mixed pairs": found.mixed_space_pairs}


def main() -> None:
    """Do several swaps without a rate limit and one with the default rate. Of the former the swap with the median age during re-encoding counts."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--users", type=int, default=20_000)
    p.add_argument("--events", type=int, default=200_000, help="before the live ones")
    p.add_argument("--rate", type=float, default=500, help="live events a second")
    p.add_argument("--quiet", type=float, default=15, help="seconds of each figure before the change")
    options = p.parse_args()
    default = Settings().releases.reencode_per_s
    with kafka() as bootstrap, tempfile.TemporaryDirectory() as folder:
        runs = [uvloop.run(measure(bootstrap, Path(folder), options, 1e6)) for _ in range(options.runs)]
        slower = uvloop.run(measure(bootstrap, Path(folder), options, default))
    runs.sort(key=lambda r: r["age p99 while users go over"])
    figures = {"no rate set": runs[len(runs) // 2], f"{default:g} users/s by setting": slower}
    note = f"shipped sequence encoder to another, {options.events} events of {options.users} users before, {options.rate:g} live events/s"
    record("swap", figures, "ms, users/s", f"{note}; goals: 0 wrong, ≤ 2 times, ≤ 100 ms, ≤ 1.2 times, share ≥ 0.7", runs=runs)


if __name__ == "__main__":
    main()
