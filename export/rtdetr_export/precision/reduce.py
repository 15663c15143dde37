"""From an FP32 graph to one of lower precision, guided by images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir

from rtdetr_deploy import __version__
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo
from rtdetr_deploy.images.find import find_images
from rtdetr_deploy.images.frame import ImageLike, load_frame
from rtdetr_deploy.images.preprocess import HostPreprocessor
from rtdetr_deploy.runtimes import Array
from rtdetr_export.precision.fp16 import Fp16Report, compile_pattern, to_fp16
from rtdetr_export.precision.int8 import Layer, find_layers, measure_scales, quantize
from rtdetr_export.precision.magnitudes import measure_magnitudes
from rtdetr_export.precision.sensitivity import Choice, Done, choose_blocks
from rtdetr_export.simplify import serialize
from rtdetr_export.verify.synthetic_images import synthetic_images

MOST_IMAGES = 128
"""Calibration images that are used, evenly chosen from more."""


def choose_images(folder: Path | None, height: int, width: int) -> list[ImageLike]:
    """Return the images of `folder`, evenly chosen where there are many, or synthetic ones of the given size.

    Raises `OptionError` when the folder holds no image.
    """
    if folder is None:
        return synthetic_images(height, width)
    paths = find_images([str(folder)])
    step = max(1, len(paths) / MOST_IMAGES)
    return [paths[int(index * step)] for index in range(min(len(paths), MOST_IMAGES))]


def reduce_to_fp16(
    graph: onnx_ir.Model, info: ArtifactInfo, images: Sequence[ImageLike], keep_fp32: Sequence[str]
) -> Fp16Report:
    """Turn the FP32 `graph` into a mixed FP16 one in place; nodes with values near FP16's limit stay in FP32."""
    magnitudes = measure_magnitudes(serialize(graph, {}, __version__), _prepare(info, images))
    return to_fp16(graph, keep_fp32=keep_fp32, magnitudes=magnitudes)


def reduce_to_int8(
    graph: onnx_ir.Model,
    info: ArtifactInfo,
    images: Sequence[ImageLike],
    keep_fp32: Sequence[str],
    on_done: Done | None = None,
) -> Choice:
    """Quantize the blocks of the FP32 `graph` that bear it, in place, and return the choice; see `choose_blocks`."""
    layers, scales = measure_layers(graph, info, images, keep_fp32)
    choice = choose_blocks(graph, layers, scales, images, on_done)
    quantize(graph, [layer for layer in layers if layer.block in choice.blocks], scales)
    return choice


def measure_layers(
    graph: onnx_ir.Model, info: ArtifactInfo, images: Sequence[ImageLike], keep_fp32: Sequence[str] = ()
) -> tuple[list[Layer], dict[str, float]]:
    """Return the layers of the FP32 `graph` that may go to INT8, and the scales of their inputs on `images`."""
    nodes = list(graph.graph)
    patterns = [compile_pattern(pattern, nodes) for pattern in keep_fp32]
    layers = [layer for layer in find_layers(graph) if not any(p.search(layer.node) for p in patterns)]
    content = serialize(graph, {METADATA_KEY: info.to_json()}, __version__)
    return layers, measure_scales(content, {layer.activation for layer in layers}, _prepare(info, images))


def _prepare(info: ArtifactInfo, images: Sequence[ImageLike]) -> Iterator[Array]:
    """Yield each image as the model's input, in every row of the batch."""
    prepare, rows = HostPreprocessor(info.preprocess), info.batch or 1
    for image in images:
        yield prepare([load_frame(image)] * rows, rows)
