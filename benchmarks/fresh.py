"""Writes a bundle of a preset with untrained weights, in a separate process because of torch: python -m benchmarks.fresh PRESET LENGTH FOLDER.

An encoder's cost depends on its shape only, so untrained weights suffice. `s-int8` is preset S in int8, here without the quality check that an export
or a retraining makes (`training/quantise.py`).
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from encoder.bundle import ONNX, publish
from encoder.config import preset
from encoder.model import SequenceEncoder
from encoder.towers import load_tower
from training.export import export
from training.quantise import quantised


def main(name: str, length: int, out: Path) -> None:
    """Write the bundle for the shipped tower."""
    tower, (shape, _, form) = load_tower("static"), name.partition("-")
    if form not in ("", "int8"):
        sys.exit(f"{name}: want a preset, or a preset with -int8")
    with tempfile.TemporaryDirectory() as folder:
        whole = export(SequenceEncoder(preset(shape, tower.dims, max_len=length)), Path(folder) / "float32", tower.space_id, f"fresh-{shape}")
        files = {file: (whole.folder / file).read_bytes() for file in whole.manifest.files}
        if form == "int8":
            files[ONNX] = quantised(files[ONNX])
        publish(out, replace(whole.manifest, version=f"fresh-{name}-{whole.manifest.version.rpartition('-')[2]}"), files)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
