"""How far behind a read replica is, what it says of it, and when it begins anew; and what is answered of a stored profile."""

import shutil
from pathlib import Path

import msgspec
import pytest

from schemas.profiles import encode_profile, unpack_vector
from streams.core.errors import StorageError
from streams.processes.replica import keep
from streams.serve.models import view
from streams.state.followers import BEHIND, Behind, header
from tests.schemas.test_codecs import PROFILE

CASES = [
    (Behind(0, 0.0), True, "records=0, seconds=0.000"),
    (Behind(10, 2.0), True, "records=10, seconds=2.000"),
    (Behind(11, 2.0), False, "records=11, seconds=2.000"),
    (Behind(10, 2.01), False, "records=10, seconds=2.010"),
    (Behind(None, 0.1), False, "seconds=0.100"),
    (Behind(5, None), False, "records=5"),
    (Behind(None, None), False, None),
]


@pytest.mark.parametrize(("behind", "within", "says"), CASES)
def test_bounds(behind: Behind, within: bool, says: str | None) -> None:
    """Reads are refused past either bound, and while it is not known how far behind the replica is; the header says what is known."""
    assert behind.within(records=10, seconds=2.0) is within
    assert header(behind).get(BEHIND) == says


def test_other_changelog(tmp_path: Path) -> None:
    """A folder that was filled from another changelog is emptied, from the same one it is kept, and a worker's is refused."""
    one = {"topic": "a.profiles", "topic_id": "1", "partitions": 4}
    (tmp_path / "worker" / "tablet-0").mkdir(parents=True)
    with pytest.raises(StorageError, match="a worker's tablets"):
        keep(tmp_path / "worker", one)
    shutil.rmtree(tmp_path / "worker")
    keep(tmp_path, one)
    for name in ("tablet-0", "items"):
        (tmp_path / name).mkdir()
    keep(tmp_path, one)
    assert {p.name for p in tmp_path.iterdir()} == {"tablet-0", "items", "changelog.json"}
    for other in ({"topic_id": "2"}, {"topic": "b.profiles"}, {"partitions": 8}):
        (tmp_path / "tablet-0").mkdir(exist_ok=True)
        keep(tmp_path, one | other)
        assert {p.name for p in tmp_path.iterdir()} == {"changelog.json"}


def test_view() -> None:
    """An answer has every field of the profile but how its vector is packed, and its age; the vector only if asked for, floats in JSON."""
    row, stored = encode_profile(PROFILE), msgspec.msgpack.decode(msgspec.msgpack.encode(PROFILE))
    del stored["vector"], stored["vector_type"]
    at = PROFILE.updated_at + 70
    assert view(row, at, False, False) == view(row, at, False, True) == {**stored, "age_ms": 70}
    assert view(row, at, True, False)["vector"] == unpack_vector(PROFILE.vector).tolist()
    assert view(row, at, True, True)["vector"] == PROFILE.vector
    assert view(row, PROFILE.updated_at - 5, False, False)["age_ms"] == 0


@pytest.mark.parametrize("row", [b"\xc1", b"\x80", b"\x81\xa1v\x02", b"\x93\x01\x02\x03", b"\x81\xa1v", b"\x81\xa1v\x01\x00"])
def test_other_bytes(row: bytes) -> None:
    """Bytes that are no profile of this version are told as such."""
    with pytest.raises(ValueError, match="not a profile"):
        view(row, 0, False, False)
