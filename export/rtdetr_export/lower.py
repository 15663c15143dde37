"""From an FP32 graph to one of lower precision, guided by images."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from rtdetr_deploy import __version__
from rtdetr_deploy.artifact import ArtifactInfo
from rtdetr_deploy.preprocess import prepare_batch
from rtdetr_deploy.sources import ImageLike, find_images, load_frame
from rtdetr_export.magnitudes import measure_magnitudes
from rtdetr_export.options import ExportOptions
from rtdetr_export.precision import HalfReport, to_half
from rtdetr_export.simplify import serialize
from rtdetr_export.verify_lower import probe_frames

MOST_IMAGES = 128
"""Calibration images that are used, evenly chosen from more."""


def choose_images(options: ExportOptions) -> list[ImageLike]:
    """Return the calibration images, evenly chosen where there are many, or synthetic ones.

    Raises `OptionError` when the folder holds no image.
    """
    if options.calibration is None:
        return probe_frames(*options.size)
    paths = find_images([str(options.calibration)])
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
