"""Cost of a million events by stage in core-seconds (CPU time of the process, not wall-clock time), and the rates of a core and of a GPU.

Stages are measured one after the other, on batches in which every event has its own user with a full window. The whole job is measured in operation,
once per encoder. The part of its cost outside the stages is Kafka's client, Faust and the event loop. Mapping and folding run once per event, all
other stages once per user of a batch.

python -m benchmarks.cost --events 40000 --users 20000
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import uvloop

from benchmarks.common import ITEMS, events, item, record
from benchmarks.disk import windows
from benchmarks.job import LENGTH, PRESETS, Measured, fill, fresh, measure
from encoder.features import featurize, fitted
from encoder.runtime import _has_gpu, load_encoder
from encoder.towers import load_tower
from schemas.events import decode_event, encode_event
from schemas.items import item_key, item_name
from schemas.mapping import Mapper, PlatformMapping, Rejected
from schemas.windows import Policy, fold, row_of
from streams.core.settings import Settings
from streams.ingest.normalise import map_events
from streams.profile.portrait import interests
from streams.profile.profiler import Profiler, style_of
from streams.releases.routing import Lineup
from streams.state.item_store import ItemStore, item_rows
from streams.state.tablet import Tablet
from testkit.apache import ApacheKafka

EVENTS, USERS, BATCH, RUNS = 40_000, 20_000, 4000, 3


class Stages:
    """Owns a batch of events of BATCH users, and runs a worker's stages on it."""

    def __init__(self, folder: Path, batch: int) -> None:
        settings = Settings(platforms=())
        self._batch, self._style, self._policy = batch, style_of(settings), Policy(64)
        tower, r = load_tower("static"), np.random.default_rng(0)
        self.tower = tower
        self._store = ItemStore(folder / "items", tower.space_id, tower.dims)
        mapping = PlatformMapping.model_validate({"name": "shop", "code": 1, "preset": "plain", "shared_ids": True})
        self._mapper = Mapper(mapping, 300_000, 0)
        items = [self._mapper.item(item(n)) for n in range(ITEMS)]
        self._store.apply([(k, v) for k, v, _ in item_rows(items, tower, 0)], ("items", 0), 0)  # type: ignore[arg-type]
        keys = np.array([item_key(f"shop:i{n}") for n in range(ITEMS)], np.uint64)
        self._users = [f"u{n}".encode() for n in range(batch)]
        self._windows = windows(batch, r, keys)
        at = time.time_ns() // 1_000_000
        self._records = [
            SimpleNamespace(key=user, value=raw, topic="t", partition=0, offset=n, timestamp=at)
            for n, (user, (_, raw)) in enumerate(zip(self._users, events(batch, batch), strict=True))
        ]
        found = [self._mapper.events(record.value, "t", 0, n, at) for n, record in enumerate(self._records)]
        self._unified = [encode_event(e[0]) for e in found if not isinstance(e, Rejected)]
        self._features = featurize(self._windows, self._store.table, self._policy.most)
        self.tablet = Tablet(0, folder / "tablet-0")
        baseline = Lineup(load_encoder("baseline", tower.space_id, tower.dims))
        profiler = Profiler(lambda: baseline, self._store, self._style, self._policy)
        self._received = [at] * batch
        self._profiles, _ = profiler(self._users, self._windows, self._received, at)

    def mapping(self) -> None:
        """Map a platform's JSON to rows of the unified topic."""
        map_events(self._records, self._mapper, "shop")

    def fold(self) -> None:
        """Fold rows of the unified topic into full windows, each event into its own window."""
        for window, raw in zip(self._windows, self._unified, strict=True):
            event = decode_event(raw)
            fold(window, [row_of(event, item_name("shop", event.item_id))], self._policy)

    def featurize(self) -> None:
        """Make feature arrays of the windows."""
        featurize(self._windows, self._store.table, self._policy.most)

    def portrait(self) -> None:
        """Make named interests of the feature arrays."""
        interests(self._features, self._store, self._style)

    def rocksdb(self) -> None:
        """Read windows; write windows and profiles."""
        self.tablet.windows(self._users)
        self.tablet.write(zip(self._users, self._windows, strict=True), zip(self._users, self._profiles, strict=True))

    def encode(self, name: str, device: Any = "cpu") -> Callable[[], None]:
        """Return a function that encodes the feature arrays with an encoder."""
        encoder = load_encoder(name, self.tower.space_id, self.tower.dims, device=device)

        def work() -> None:
            encoder.encode(fitted(self._features, encoder.max_len, self._policy), self._store.table)

        return work

    def seconds(self, work: Callable[[], None], clock: Callable[[], float] = time.process_time) -> float:
        """Return the core-seconds (or seconds, by `clock`) of a stage per million events: the minimum of several runs."""
        work()  # warm-up: projects the items, maps memory pages
        took = []
        for _ in range(RUNS):
            began = clock()
            work()
            took.append(clock() - began)
        return min(took) / self._batch * 1e6


def stages(folder: Path, batch: int, encoders: dict[str, str]) -> tuple[dict[str, float], dict[str, float | None]]:
    """Return (stage -> core-seconds per million events, encoder -> events/s on a GPU, None without a GPU)."""
    s, gpu = Stages(folder, batch), dict[str, float | None]()
    found = {work.__name__: s.seconds(work) for work in (s.mapping, s.fold, s.featurize, s.portrait, s.rocksdb)}
    for name, bundle in encoders.items():
        found[f"encode, {name}"] = s.seconds(s.encode(bundle))
        if name != "baseline" and not name.endswith("int8"):  # int8 runs on CPUs only
            gpu[name] = round(1e6 / s.seconds(s.encode(bundle, "cuda"), time.perf_counter)) if _has_gpu() else None
    s.tablet.close()
    return {name: round(value, 2) for name, value in found.items()}, gpu


def main() -> None:
    """Measure the stages, then whole jobs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--presets", nargs="*", default=PRESETS)
    parser.add_argument("--bundles", type=Path, help="folder in which the bundles stay, for the next run")
    a = parser.parse_args()
    whole = dict[str, Measured]()
    with tempfile.TemporaryDirectory(prefix="currents-bench-") as tmp:
        folder = Path(tmp)
        encoders = {**{f"preset {name}": fresh(name, a.bundles or folder) for name in a.presets}, "baseline": "baseline"}
        by_stage, gpu = stages(folder / "stages", a.batch, encoders)
        print(by_stage, flush=True)
        fill(folder / "filled", a.users, 4)
        with ApacheKafka(heap_mb=1024) as broker:
            assert broker.process is not None
            for name, encoder in encoders.items():
                it = psutil.Process(broker.process.pid)
                whole[name] = uvloop.run(measure(broker.bootstrap, encoder, a.users, a.events, folder / "filled", it))
                print(name, whole[name], flush=True)
    figures: dict[str, Any] = {name: parts(by_stage, name, m) for name, m in whole.items()}
    figures["events/s per GPU, encoder alone"] = {k: "none here" if v is None else v for k, v in gpu.items()}
    note = (
        f"core-seconds per million events where no other unit is named; stages: {a.batch:,} events of as many users, full windows of "
        f"64, the encoders read {LENGTH}; whole job: {a.events:,} events of {a.users:,} users, catching up, several of a user in a batch encoded once"
    )
    record("cost", figures, "core-seconds per million events", note, stages=by_stage, gpu=gpu)


def parts(by_stage: dict[str, float], name: str, m: Measured) -> dict[str, float]:
    """Split a whole job's core-seconds into stages: those per event, and those per window times the number of windows."""
    out = {stage: by_stage[stage] for stage in ("mapping", "fold")}
    out |= {stage: by_stage[stage] * m.windows for stage in ("featurize", "portrait", "rocksdb")}
    out["encode"] = by_stage[f"encode, {name}"] * m.windows
    out["Kafka client, Faust and the rest"] = m.cpu_us - sum(out.values())
    out |= {"whole job": m.cpu_us, "the broker, besides": m.broker_us}
    return {
        **{what: round(v, 1) for what, v in out.items()},
        "windows for each event": round(m.windows, 2),
        "events/s per core": round(1e6 / m.cpu_us),
    }


if __name__ == "__main__":
    main()
