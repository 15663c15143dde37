"""Made the files of this folder from the full reference outputs: python tests/golden/pack.py FOLDER.

Logits, boxes and feature maps are rounded to steps far below what the tests tolerate (see `STEPS`) and stored as
float32 in LZMA-compressed `.npz` files, which `numpy.load` reads; all else is kept. `specs.json.xz` holds every
`*.keys.json`.
"""

from __future__ import annotations

import io
import json
import lzma
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = {"logits": 2.0**-14, "boxes": 2.0**-20, "slice": 2.0**-17}
"""Absolute for logits and boxes (of [0, 1]); for slices of feature maps relative to the largest value."""


def round_array(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return the array called `name` rounded as its kind may be."""
    kind = next((kind for kind in STEPS if name.startswith(kind) or name.endswith(kind)), None)
    if kind is None or array.dtype.kind != "f":
        return array
    step = STEPS[kind]
    if kind == "slice":
        step *= 2.0 ** np.floor(np.log2(np.abs(array).max()))
    rounded: NDArray[Any] = (np.round(array.astype(np.float64) / step) * step).astype(array.dtype)
    return rounded


def pack(source: Path, target: Path) -> None:
    """Write the packed form of every reference file in `source` into `target`."""
    for file in sorted(source.glob("*.npz")):
        with np.load(file) as arrays, zipfile.ZipFile(target / file.name, "w", zipfile.ZIP_LZMA) as archive:
            for name in arrays:
                content = io.BytesIO()
                exact = file.stem.startswith("loss")
                np.save(content, arrays[name] if exact else round_array(name, arrays[name]))
                entry = zipfile.ZipInfo(f"{name}.npy")  # without the time of day: the same bytes each time
                archive.writestr(entry, content.getvalue(), zipfile.ZIP_LZMA)
    suffix = ".keys.json"
    specs = {file.name.removesuffix(suffix): json.loads(file.read_text()) for file in sorted(source.glob("*" + suffix))}
    (target / "specs.json.xz").write_bytes(lzma.compress(json.dumps(specs).encode(), preset=9))


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(__file__).parent)
