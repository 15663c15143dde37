"""From an FP32 graph to one of lower precision, guided by images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir

from rtdetr_deploy import __version__
from rtdetr_deploy.artifact import ArtifactInfo
from rtdetr_deploy.preprocess import prepare_batch
from rtdetr_deploy.sources import ImageLike, find_images, load_frame
from rtdetr_export.magnitudes import measure_magnitudes
from rtdetr_export.precision import HalfReport, to_half
from rtdetr_export.probes import probe_frames
from rtdetr_export.simplify import serialize

MOST_IMAGES = 128
"""Calibration images that are used, evenly chosen from more."""


def choose_images(folder: Path | None, height: int, width: int) -> list[ImageLike]:
    """Return the images of `folder`, evenly chosen where there are many, or synthetic ones of the given size.

    Raises `OptionError` when the folder holds no image.
    """
    if folder is None:
        return probe_frames(height, width)
    paths = find_images([str(folder)])
    step = max(1, len(paths) / MOST_IMAGES)
    return [paths[int(index * step)] for index in range(min(len(paths), MOST_IMAGES))]


def lower_to_half(
    graph: onnx_ir.Model, info: ArtifactInfo, images: Sequence[ImageLike], keep_fp32: Sequence[str]
) -> HalfReport:
    """Turn the FP32 `graph` into a mixed FP16 one in place; nodes with values near FP16's limit stay in FP32."""
    content = serialize(graph, {}, __version__)
    frames = (load_frame(image) for image in images)
    rows = info.batch or 1
    prepared = (prepare_batch([frame] * rows, info.height, info.width, raw=info.raw_input) for frame in frames)
    magnitudes = measure_magnitudes(content, prepared)
    return to_half(graph, keep_fp32=keep_fp32, magnitudes=magnitudes)
