"""The whole path with a bundle, and items that come late."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.towers import load_tower
from schemas.profiles import decode_profile
from streams.audit.windows import latest
from testkit.cluster import RIGHT, Cluster, Load, wait_for
from training.export import export

pytestmark = pytest.mark.kafka


def test_bundle_end_to_end(cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    """The whole path runs with a sequence encoder on ONNX Runtime, and its profiles name it."""
    torch.manual_seed(0)
    tower = load_tower("static")
    model = SequenceEncoder(preset("xs", tower.dims, max_len=32))
    torch.nn.init.normal_(model.out.weight, std=0.05)
    bundle = export(model, tmp_path / "xs", tower.space_id, "xs")
    c = cluster(encoding={"encoder": str(bundle.folder)})
    c.items()
    load = Load(c, events=4000, rate=2000)
    worker = c.worker("a").ready()
    load.join()
    c.drain()
    profile = worker.get("/v1/profiles/u1", params={"vector": True}).json()
    assert (profile["encoder_version"], profile["space_id"]) == (bundle.manifest.version, bundle.manifest.space_id)
    assert np.linalg.norm(profile["vector"]) == pytest.approx(1, abs=2e-3)
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT


def test_late_items(cluster: Callable[..., Cluster]) -> None:
    """Items that come after the events on them: their users are encoded again, without a further event."""
    c = cluster()
    load = Load(c, events=3000, rate=3000)
    load.join()
    worker = c.worker("a").ready()
    c.drain()
    c.items(600)
    wait_for("every user to be encoded again", lambda: not any(decode_profile(p).unknown_items for p in latest(c.log("profiles")).values()))
    assert worker.metric("currents_reencoded_total") > 0
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT
