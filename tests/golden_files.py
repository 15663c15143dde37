"""Outputs of the released implementations (../shared/golden), and the weights that they were made with."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conftest import shared_folder

VARIANTS = {
    "v1_r18": "r18",
    "v1_r18_480x800": "r18",
    "v1_r34": "r34",
    "v1_r50_m": "r50-m",
    "v1_r50": "r50",
    "v2_r18": "r18",
    "v2_r18_dsp": "r18-dsp",
    "v2_r50_m": "r50-m",
    "v2_hgnetv2_l": "hgnetv2-l",
    "v2_hgnetv2_x": "hgnetv2-x",
}


@cache
def read_golden(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]], NDArray[np.float32]]:
    """Return the description, the reference arrays and the image of one reference file; skips where there are none."""
    folder = shared_folder("golden")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    import golden_fill  # type: ignore[import-not-found]

    spec = json.loads((folder / f"{name}.keys.json").read_text())
    image = golden_fill.probe_image(spec["height"], spec["width"], seed=spec["seed"])
    return spec, dict(np.load(folder / f"{name}.npz")), image


def write_weights(name: str, folder: Path) -> Path:
    """Write the reference weights as a file in the released layout."""
    import torch

    spec, _, _ = read_golden(name)
    import golden_fill

    state = {key: torch.from_numpy(np.asarray(value)) for key, value in golden_fill.fill_state(spec["shapes"]).items()}
    path = folder / f"{name}.pth"
    torch.save({"ema": {"module": state}, "model": {}}, path)
    return path
