"""The topic of releases: which record counts, and which one is written."""

from typing import Any

import msgspec
import pytest

from schemas.releases import Release, State, decode_release, encode_release
from streams.releases.release_log import (
    Announced,
    ReleaseError,
    announced,
    candidate,
    earlier,
    ended,
    heads,
    promoted,
    proposed,
    restored,
    serving,
    trial,
)  # fmt: skip

DIGEST = "0123456789abcdef" * 4


def release(version: str = "v1", state: State = "serving", **more: Any) -> Release:
    given = {"space_id": "s1", "bundle": f"/b/{version}", "digest": DIGEST, "share": 0.1, "previous": "", "at": 5, "by": "test", "why": "", **more}
    return Release(version=version, state=state, **given)


def log(*records: tuple[str, Release]) -> list[Announced]:
    return [announced(n, channel.encode(), encode_release(r)) for n, (channel, r) in enumerate(records)]


def test_newest_of_each_channel() -> None:
    """The newest record of a channel counts, whatever times the records say."""
    history = log(("serving", release("v1", at=9)), ("candidate", release("v2", "canary")), ("serving", release("v3", at=1)))
    assert {c: a.offset for c, a in heads(history).items()} == {"serving": 2, "candidate": 1}
    assert serving(history) == release("v3", at=1)
    assert serving([]) is None


BAD = {
    "not MessagePack": (b"serving", b"\xc1", "not a release"),
    "erased": (b"serving", None, "not a release"),
    "other version": (b"serving", b"\x81\xa1v\x09", "version 1"),
    "share": (b"candidate", encode_release(release(state="canary", share=1.5)), "share = 1.5"),
    "channel": (b"other", encode_release(release()), "want one of serving, candidate"),
    "no channel": (None, encode_release(release()), "want one of serving, candidate"),
    "state": (b"serving", encode_release(release(state="canary")), "state 'canary' on channel serving"),
    "no digest": (b"serving", encode_release(release(digest="")), "digest ''"),
    "digest": (b"serving", encode_release(release(digest="Z" * 64)), "hexadecimal"),
    "no space": (b"serving", encode_release(release(space_id="")), "space_id"),
}


@pytest.mark.parametrize("how", BAD)
def test_invalid_record(how: str) -> None:
    """A record that is not valid says why in one line, and what is served stays."""
    key, value, message = BAD[how]
    history = [*log(("serving", release("v1"))), announced(1, key, value)]
    assert history[1].release is None
    assert message in history[1].problem
    assert "\n" not in history[1].problem
    assert serving(history) == release("v1")


def test_trial_ends() -> None:
    """A candidate is on trial until its own channel or a newer record of `serving` says otherwise; one merely announced waits."""
    served, canary = ("serving", release("v1")), ("candidate", release("v2", "canary"))
    assert trial(log(served, canary)) == canary[1]
    assert trial(log(canary)) == canary[1]
    assert candidate(log(served, ("candidate", release("v2", "candidate")))) == release("v2", "candidate")
    assert trial(log(served, ("candidate", release("v2", "candidate")))) is None
    for state in ("refused", "rolled-back", "promoted"):
        assert candidate(log(served, canary, ("candidate", release("v2", state)))) is None
    assert candidate(log(served, canary, ("serving", release("v2")))) is None
    assert candidate(log(served, canary, ("serving", release("v2")), ("serving", release("v1")))) is None
    assert trial(log(served, ("candidate", release("v2", "shadow")))) is not None


def test_promote_and_back() -> None:
    """To promote is one record with what was before; to go back is one more, the earlier release with its bundle as it was."""
    v1, v2 = release("v1", bundle="", digest=""), release("v2", "canary", metrics={"hr": 0.1})
    history = log(("candidate", v2))
    up = promoted(history, v2, "baseline-3", "me", "better", 7, {"online": 0.2})
    assert (up.state, up.previous, up.at, up.by, up.metrics) == ("promoted", "baseline-3", 7, "me", {"hr": 0.1, "online": 0.2})
    history = log(("serving", v1), ("candidate", v2), ("serving", promoted(log(("serving", v1)), v2, "x", "me", "better", 7, {})))
    found = earlier(history, None)
    assert found == v1
    back = restored(history, v1, "me", "worse", 8)
    assert (back.state, back.version, back.bundle, back.previous) == ("rolled-back", "v1", "", "v2")
    history += log(("serving", back))
    assert decode_release(encode_release(back)) == back
    again = earlier(history, None)
    assert again is not None
    assert again.version == "v2"
    assert earlier(history, "v9") is None


def test_refusals() -> None:
    """Two candidates at once, what is served already, nothing to go back from: each is refused in one line."""
    served, canary = release("v1"), release("v2", "canary")
    with pytest.raises(ReleaseError, match="candidate v2 is on trial"):
        proposed(log(("serving", served), ("candidate", canary)), release("v3", "canary"))
    assert proposed(log(("serving", served), ("candidate", canary)), release("v2", "shadow")).state == "shadow"
    with pytest.raises(ReleaseError, match="v1 is what is served"):
        proposed(log(("serving", served)), release("v1", "canary"))
    with pytest.raises(ReleaseError, match="v1 is what is served"):
        promoted(log(("serving", served)), served, "", "me", "", 1, {})
    with pytest.raises(ReleaseError, match="v1 is what is served"):
        restored(log(("serving", served)), served, "me", "", 1)
    with pytest.raises(ReleaseError, match="nothing was promoted"):
        earlier(log(("candidate", canary)), None)
    with pytest.raises(ReleaseError, match="state 'serving' on channel candidate"):
        proposed([], release("v3"))


def test_ended() -> None:
    """The end of a trial keeps the candidate's record and adds what was measured."""
    canary = release("v2", "canary", metrics={"hr": 0.1})
    end = ended(canary, "worker", "worse", 9, {"n": 3.0})
    assert msgspec.structs.asdict(end) == {
        **msgspec.structs.asdict(canary), "state": "rolled-back", "share": 0.0, "by": "worker", "why": "worse", "at": 9,
        "metrics": {"hr": 0.1, "n": 3.0},
    }  # fmt: skip
    assert candidate(log(("candidate", canary), ("candidate", end))) is None
