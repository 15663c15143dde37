"""What a model is fed with, checked against what it takes: one rule and the same words for all runtimes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rtdetr_deploy.errors import ArtifactError
from rtdetr_deploy.images.gpu_array import GpuArray
from rtdetr_deploy.runtimes.protocol import Array, DeviceBatch, Feed, TensorSpec


def check_feed(
    feed: Feed, inputs: Sequence[TensorSpec], file: str, own: tuple[type[DeviceBatch], ...] = ()
) -> dict[str, Array]:
    """Return NumPy's arrays of `feed`. Raises `ArtifactError` unless all are what `inputs` of `file` say.

    `own` are the classes of batches on a device that the runtime takes; they are left out of the result. Runtimes
    themselves are not of one mind: OpenVINO casts other dtypes and remembers inputs that are left out.
    """
    if feed.keys() != {spec.name for spec in inputs}:
        named = ", ".join(spec.name for spec in inputs)
        raise ArtifactError(f"{file} takes {named}, not {', '.join(feed) or 'nothing'}")
    arrays: dict[str, Array] = {}
    for spec in inputs:
        array = feed[spec.name]
        if isinstance(array, own) and not isinstance(array, GpuArray):
            continue
        if not isinstance(array, (np.ndarray, GpuArray)) or (isinstance(array, GpuArray) and GpuArray not in own):
            raise ArtifactError(f"{file} takes {spec}, not {type(array).__name__}")
        if array.dtype != spec.dtype or not _fits(array.shape, spec.shape):
            raise ArtifactError(f"{file} takes {spec}, not {array.dtype}{list(array.shape)}")
        if isinstance(array, np.ndarray):
            arrays[spec.name] = array
    return arrays


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Tell whether a shape is the expected one; dynamic axes hold at least one."""
    return len(shape) == len(expected) and all(
        found >= 1 if axis is None else found == axis for found, axis in zip(shape, expected, strict=True)
    )


def closed(file: str) -> ArtifactError:
    """Return the error of a runtime that is used after it was closed."""
    return ArtifactError(f"{file} is closed; open it again with Predictor or open_runtime")
