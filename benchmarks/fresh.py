"""A bundle of a preset with fresh weights, in a process of its own, for it needs torch: python -m benchmarks.fresh PRESET LENGTH FOLDER.

What an encoder costs depends on its shape alone, so weights that were never trained will do.
"""

import sys
from pathlib import Path

from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.towers import load_tower
from training.export import export


def main(name: str, length: int, out: Path) -> None:
    """Write the bundle, for the shipped tower."""
    tower = load_tower("static")
    export(SequenceEncoder(preset(name, tower.dims, max_len=length)), out, tower.space_id, f"fresh-{name}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
