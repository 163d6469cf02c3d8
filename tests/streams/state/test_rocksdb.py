"""A RocksDB that was killed, or whose files were spoiled: it is as it was at an earlier moment, or it is emptied; never anything else."""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rocksdict import Rdict

from schemas.items import Item
from streams.core.errors import DamagedError, StorageError
from streams.state.item_store import ItemStore, item_rows, load_items
from streams.state.rocksdb import MARK, close, failure, open_db, remove, scan, sound
from streams.state.tablet import Tablet
from streams.state.tablets import Tablets

USERS = 1500
SMALL = 64 << 10


def fill(tablet: Tablet) -> None:
    """Rows 0.., one a write, each followed by the offsets."""
    r = random.Random(3)
    for k in range(USERS):
        tablet.write([(b"%06d" % k, r.randbytes(64))], [(b"%06d" % k, r.randbytes(256))], [(b"%08d" % k, b"u")])
        tablet.write(offsets={"windows": k, "profiles": k}, now_ms=1)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a tablet as a kill -9 leaves them."""
    path = tmp_path_factory.mktemp("killed") / "tablet-0"
    code = f"import os; from {__name__} import *; fill(Tablet(0, Path({str(path)!r}), write_buffer_bytes=SMALL)); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == -signal.SIGKILL
    return path


def rows(tablet: Tablet) -> int:
    """How many rows there are; the offsets promise no more, and every row can be read."""
    n = len(list(tablet.scan("windows")))
    keys = [b"%06d" % k for k in range(n)]
    assert None not in tablet.windows(keys)
    assert len(dict(tablet.scan("profiles"))) == len(list(tablet.awaited())) == n
    assert all(tablet.profile(k) for k in keys[::97])
    assert n - 1 <= tablet.offset("windows")[0] + 1 <= n
    assert tablet.offset("windows") == tablet.offset("profiles")
    return n


def test_killed(killed: Path, tmp_path: Path) -> None:
    """After a kill -9 all tables and offsets are of one earlier moment, and a clean end loses nothing."""
    shutil.copytree(killed, tmp_path / "tablet-0")
    tablet = Tablet(0, tmp_path / "tablet-0", write_buffer_bytes=SMALL)
    assert USERS / 4 < rows(tablet) <= USERS
    fill(tablet)
    tablet.close()
    tablet = Tablet(0, tmp_path / "tablet-0", write_buffer_bytes=SMALL)
    assert rows(tablet) == USERS
    tablet.close()


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for at in random.Random(len(data)).sample(range(len(data)), min(3, len(data))):
        data[at] ^= 0xFF
    file.write_bytes(data)


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("spoil", [flipped, halved, zeroed, Path.unlink])
def test_spoiled(killed: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """Whichever file is spoiled in whichever way: nothing is noticed and nothing missing, or the next one who opens the tablet finds it empty."""
    emptied = 0
    for number, file in enumerate(sorted(killed.iterdir())):
        folder = tmp_path / str(number)
        shutil.copytree(killed, folder / "tablet-0")
        spoil(folder / "tablet-0" / file.name)
        tablets = Tablets(folder, 8, 1)
        tablet = tablets.open(0)
        n = -1
        with contextlib.suppress(DamagedError):
            n = rows(tablet)
        if n < 0:
            tablet.close()
            tablet = tablets.open(0)
            n = rows(tablet)
            assert n == 0
        emptied += n == 0
        tablet.close()
    assert emptied >= 3


def test_items(tmp_path: Path) -> None:
    """A damaged item store is emptied, and with its offsets it asks for the topic from the start."""

    class Tower:
        space_id, dims = "s", 192

        def encode(self, texts: list[str]) -> object:
            import numpy as np

            return np.random.default_rng(1).normal(size=(len(texts), self.dims)).astype(np.float32)

    made = item_rows([Item(f"shop:{k}", f"title {k}", (), "") for k in range(2000)], Tower(), 1)  # type: ignore[arg-type]
    store = ItemStore(tmp_path / "items", "s", 192)
    store.apply([(k, v) for k, v, _ in made], ("t", 0), 1999)
    store.close()
    store = load_items(tmp_path / "items", "s", 192)
    assert (store.table.size, store.next_offset(("t", 0))) == (2001, 2000)
    store.close()
    file = max((tmp_path / "items").glob("*.sst"), key=lambda p: p.stat().st_size)
    flipped(file)
    store = load_items(tmp_path / "items", "s", 192)
    assert (store.table.size, store.next_offset(("t", 0))) == (1, 0)
    store.close()


def test_what_is_said_of_an_error(tmp_path: Path) -> None:
    """An error says which folder, why and what to do; a damaged one is marked, and only that."""
    locked = failure(tmp_path, Exception("IO error: lock hold by\n  current process: LOCK: busy"))
    assert (
        str(locked)
        == f"{tmp_path}: IO error: lock hold by current process: LOCK: busy; another worker uses this folder: give each its own worker.data_dir"
    )
    full = failure(tmp_path, Exception("IO error: No space left on device"))
    assert str(full) == f"{tmp_path}: IO error: No space left on device; is the disk full?"
    assert (type(locked), type(full), list(tmp_path.iterdir())) == (StorageError, StorageError, [])
    for why in ("Corruption: block checksum", "IO error: No such file or directory"):
        (tmp_path / MARK).unlink(missing_ok=True)
        damaged = failure(tmp_path, Exception(why))
        assert (type(damaged), str(damaged)) == (DamagedError, f"{tmp_path}: {why}; it is emptied when it is opened next, and read again from Kafka")
        assert (tmp_path / MARK).exists()
    assert isinstance(failure(tmp_path / "gone", Exception("Corruption")), DamagedError)


def test_marked_folder_is_emptied(tmp_path: Path) -> None:
    """A folder that was found damaged is not opened, also where nothing is wrong with it now, but emptied; the next one finds it sound."""
    path = tmp_path / "db"
    db = open_db(path, None, SMALL, ("a",))
    db.get_column_family("a").put(b"k", b"v")
    db.close()
    (path / MARK).touch()
    with pytest.raises(DamagedError, match="was found damaged"):
        open_db(path, None, SMALL, ("a",))
    opened = list[int]()

    def make() -> Rdict:
        opened.append(1)
        return open_db(path, None, SMALL, ("a",))

    db = sound(path, make)
    assert list(scan(path, db.get_column_family("a"))) == []
    assert (len(opened), (path / MARK).exists(), sorted(p.name for p in tmp_path.iterdir())) == (2, False, ["db"])
    db.close()


def test_other_errors_empty_nothing(tmp_path: Path) -> None:
    """A folder that another has open, or that cannot be made, is left as it is."""
    path = tmp_path / "db"
    db = open_db(path, None, SMALL, ("a",))
    with pytest.raises(StorageError, match="another worker uses this folder"):
        sound(path, lambda: open_db(path, None, SMALL, ("a",)))
    db.close()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="is the disk full"):
        open_db(tmp_path / "file" / "db", None, SMALL, ("a",))
    assert path.exists()


def test_removed(tmp_path: Path) -> None:
    """A folder that is taken away leaves nothing, also where an earlier removal was cut off."""
    for name in ("db", "gone-db"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "file").write_text("x")
    remove(tmp_path / "db")
    assert list(tmp_path.iterdir()) == []


def test_scan(tmp_path: Path) -> None:
    """Rows are read in the order of their keys, from the first or from a key on, which need not be there."""
    db = open_db(tmp_path / "db", None, SMALL, ("a", "b"))
    family = db.get_column_family("a")
    for key in (b"c", b"a", b"e"):
        family.put(key, key * 2)
    db.get_column_family("b").put(b"x", b"y")
    assert [list(scan(tmp_path, family, start)) for start in (None, b"c", b"d", b"f")] == [
        [(b"a", b"aa"), (b"c", b"cc"), (b"e", b"ee")], [(b"c", b"cc"), (b"e", b"ee")], [(b"e", b"ee")], [],
    ]  # fmt: skip
    db.close()


def test_every_part_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A part that cannot be closed keeps none of the others from it, and is told of."""
    closed = list[str]()

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            if self.name == "bad":
                raise OSError("cannot flush")
            closed.append(self.name)

    close(tmp_path, [Part("one"), Part("bad"), Part("two")])
    assert closed == ["one", "two"]
    assert f"{tmp_path}: cannot flush" in caplog.text


def test_no_log_of_its_own(tmp_path: Path) -> None:
    """What is in the memtable alone does not outlive a kill: there is no write-ahead log; a full memtable goes to the disk by itself."""
    db = open_db(tmp_path / "db", None, SMALL, ("a",))
    family = db.get_column_family("a")
    family.put(b"k", b"v")
    shutil.copytree(tmp_path / "db", tmp_path / "early")
    for n in range(100):
        family.put(b"%03d" % n, bytes(4096))
    family.flush()  # waits for what is under way
    shutil.copytree(tmp_path / "db", tmp_path / "late")
    db.close()
    assert len(list((tmp_path / "late").glob("*.sst"))) >= 2
    for name, keys in (("early", 0), ("late", 101)):
        copy = open_db(tmp_path / name, None, SMALL, ("a",))
        assert len(list(scan(tmp_path, copy.get_column_family("a")))) == keys
        copy.close()
