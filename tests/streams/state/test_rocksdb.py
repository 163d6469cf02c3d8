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

from schemas.items import Item
from streams.core.errors import DamagedError
from streams.state.item_store import ItemStore, item_rows, load_items
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
