"""Weights and images of the reference outputs: made from names, shapes and a seed, so that none are stored.

NumPy's `RandomState` streams are frozen by its policy, so these numbers never move.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20240408
WAVES = 12


def fill_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, NDArray[Any]]:
    """Return every parameter and buffer of a model, by name, for its names and shapes."""
    return {key: fill_array(key, tuple(shape)) for key, shape in shapes.items()}


def fill_array(key: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the float32 values of the parameter or buffer `key`; counters are int64 zeros."""
    rng = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    name = key.rsplit(".", 1)[-1]
    if name == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if name == "running_mean":
        return rng.normal(0.0, 0.05, shape).astype(np.float32)
    if name == "running_var":
        return rng.uniform(0.8, 1.25, shape).astype(np.float32)
    if "enc_output" in key and key.endswith((".0.bias", ".proj.bias")):
        return np.zeros(shape, np.float32)  # masked border tokens then never win the query selection
    if name == "bias" or name.endswith("_bias"):
        return rng.normal(0.0, 0.6 if "sampling_offsets" in key else 0.05, shape).astype(np.float32)
    if len(shape) == 1:  # gains of normalizations
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    return rng.normal(0.0, _gain(key, shape) / np.sqrt(int(np.prod(shape[1:]))), shape).astype(np.float32)


def _gain(key: str, shape: tuple[int, ...]) -> float:
    if "sampling_offsets" in key:
        return 0.5
    if "score_head" in key:
        return 3.0  # class scores are spread, so that the best queries are distinct
    return 1.15 if len(shape) == 4 else 1.0  # features of the deepest backbone stay near unit scale


def probe_image(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Return a `(1, 3, height, width)` float32 RGB image in [0, 1]: waves under noise."""
    rng = np.random.RandomState(SEED + seed)
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.zeros((3, height, width))
    for channel in image:
        for _ in range(WAVES):
            rise, run = rng.uniform(-0.12, 0.12, 2)
            channel += np.sin(rise * y + run * x + rng.uniform(0, 6.28)) * rng.uniform(0.2, 1.0)
    image += rng.normal(0.0, 0.3, image.shape)
    pixels: NDArray[np.float32] = (1.0 / (1.0 + np.exp(-image[None]))).astype(np.float32)
    return pixels
