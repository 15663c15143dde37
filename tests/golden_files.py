"""Outputs of the released implementations (tests/golden), and the weights that they were made with."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conftest import ROOT
from golden_fill import fill_state, probe_image

GOLDEN = ROOT / "tests" / "golden"
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
WITHOUT_MODEL = frozenset({"deim_s", "dfine_l", "dfine_s", "v1_dla34"})
"""References of detectors that this project doesn't build."""


@cache
def read_specs() -> dict[str, dict[str, Any]]:
    """Return what describes each reference: names and shapes of parameters, size and seed of the image."""
    specs: dict[str, dict[str, Any]] = json.loads(lzma.decompress((GOLDEN / "specs.json.xz").read_bytes()))
    return specs


@cache
def read_golden(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]], NDArray[np.float32]]:
    """Return the description, the reference arrays and the image of one reference."""
    spec = read_specs()[name]
    return spec, dict(np.load(GOLDEN / f"{name}.npz")), probe_image(spec["height"], spec["width"], seed=spec["seed"])


def write_weights(name: str, folder: Path) -> Path:
    """Write the reference weights as a file in the released layout."""
    import torch

    state = {key: torch.from_numpy(value) for key, value in fill_state(read_specs()[name]["shapes"]).items()}
    path = folder / f"{name}.pth"
    torch.save({"ema": {"module": state}, "model": {}}, path)
    return path
