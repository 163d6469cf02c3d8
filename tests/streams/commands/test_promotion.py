"""`currents releases promote`: what it asks before, and what it says of workers that will not follow."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from schemas.releases import Release
from streams.commands import releases
from streams.commands.main import app
from streams.releases import release_log
from streams.releases.release_log import Announced
from tests.schemas.test_codecs import RELEASE

V1 = msgspec.structs.replace(RELEASE, version="v1", digest="0" * 64, state="candidate", metrics={})


def promote(monkeypatch: pytest.MonkeyPatch, history: list[Announced], *more: str) -> tuple[Any, list[Release]]:
    """The command without a broker: what it says, and what it writes."""
    written: list[Release] = []

    async def announce(kafka: object, topic: str, channel: str, release: Release) -> int:
        written.append(release)
        return 9

    monkeypatch.setattr(releases, "history_of", lambda _: history)
    monkeypatch.setattr(release_log, "announce", announce)
    return CliRunner().invoke(app, ["releases", "promote", "--no-check", "--json", *more]), written


def test_a_judged_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that the gate has judged is promoted; so is one that was served before."""
    judged = msgspec.structs.replace(V1, metrics={"ndcg@10": 0.2, "ndcg@10 gained": 0.1})
    done, written = promote(monkeypatch, [Announced(0, "candidate", judged, "")])
    assert (done.exit_code, json.loads(done.stdout)["version"], [r.state for r in written]) == (0, "v1", ["promoted"])
    served = msgspec.structs.replace(V1, state="promoted")
    history = [Announced(0, "serving", served, ""), Announced(1, "serving", msgspec.structs.replace(served, version="v2"), "")]
    done, written = promote(monkeypatch, history, "v1")
    assert (done.exit_code, len(written)) == (0, 1)


def test_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that no gate has judged wants --force."""
    history = [Announced(0, "candidate", V1, "")]
    done, written = promote(monkeypatch, history)
    assert (done.exit_code, written) == (1, [])
    assert "v1: no gate has judged it" in str(done.exception)
    monkeypatch.setenv("CURRENTS_RELEASES__ALLOWED_URLS", '["s3://b"]')
    done, written = promote(monkeypatch, history, "--force")
    assert (done.exit_code, len(written)) == (0, 1)
    assert done.stderr == ""


def test_place_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle from a place that workers refuse is announced with a warning that names it."""
    done, written = promote(monkeypatch, [Announced(0, "candidate", V1, "")], "--force")
    assert (done.exit_code, len(written)) == (0, 1)
    assert f"refuse {V1.bundle}: it lies in none of releases.allowed_urls" in done.stderr


def test_nobody_follows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the settings name an encoder, the command says that workers with them will not follow."""
    config = tmp_path / "currents.toml"
    config.write_text('[encoding]\nencoder = "demo"\n')
    first = Announced(0, "serving", msgspec.structs.replace(V1, version="v0", state="promoted"), "")
    done, written = promote(monkeypatch, [first, Announced(1, "candidate", V1, "")], "--force", "--config", str(config))
    assert (done.exit_code, len(written)) == (0, 1)
    assert 'do not follow this record: encoding.encoder = "demo" names an encoder' in done.stderr
