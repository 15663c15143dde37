"""From an FP32 graph to one of lower precision, guided by images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir

from rtdetr_deploy import __version__
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo
from rtdetr_deploy.errors import ImageError
from rtdetr_deploy.images.find import find_images
from rtdetr_deploy.images.frame import ImageLike, load_frame
from rtdetr_deploy.images.preprocess import HostPreprocessor
from rtdetr_deploy.runtimes import Array
from rtdetr_deploy.words import plural
from rtdetr_export.precision.activations import evenly_spaced, measure_magnitudes
from rtdetr_export.precision.cpu_scheme import make_cpu_scheme
from rtdetr_export.precision.fp16 import Fp16Report, compile_pattern, to_fp16
from rtdetr_export.precision.int8 import Scheme, TensorRtScheme, find_quantizable, measure_scales
from rtdetr_export.precision.placement import Placement
from rtdetr_export.precision.sensitivity import Done, QuantizationPlan, choose_blocks
from rtdetr_export.simplify import serialize
from rtdetr_export.verify.synthetic_images import synthetic_images

MAX_IMAGES = 128
"""Calibration images that are used, evenly chosen from more."""
MAX_IMAGES_FOR_RANGES = 32
"""Those of them on which the ranges of INT8 for CPUs are chosen: more change nothing, and maps are large."""


def choose_images(folder: Path | None, height: int, width: int) -> list[ImageLike]:
    """Return the images of `folder`, evenly chosen where there are many, or synthetic ones of the given size.

    Files that can't be read are left out, with one warning that counts them. Raises `OptionError` when the folder holds
    no image, `ImageError` when none of those chosen can be read.
    """
    if folder is None:
        return synthetic_images(height, width)
    chosen = evenly_spaced(find_images([str(folder)]), MAX_IMAGES)
    problems = {path: problem for path in chosen if (problem := _problem(path)) is not None}
    if not problems:
        return list(chosen)
    first, count = next(iter(problems.values())), f"{len(problems)} of {plural(len(chosen), 'calibration image')}"
    if len(problems) == len(chosen):
        raise ImageError(f"`calibration`: none of the images in {folder} can be read; the first: {first}")
    warnings.warn(f"{count} can't be read and are left out; the first: {first}", stacklevel=1)
    return [path for path in chosen if path not in problems]


def _problem(path: Path) -> str | None:
    """Say why an image can't be read; None where it can. Its pixels are not kept: there may be many."""
    try:
        load_frame(path)
    except ImageError as error:
        return str(error)
    return None


def reduce_to_fp16(
    graph: onnx_ir.Model,
    placement: Placement,
    info: ArtifactInfo,
    images: Sequence[ImageLike],
    keep_fp32: Sequence[str],
) -> Fp16Report:
    """Turn the FP32 `graph` into a mixed FP16 one in place; nodes with values near FP16's limit stay in FP32."""
    magnitudes = measure_magnitudes(serialize(graph, {}, __version__), _prepare(info, images))
    return to_fp16(graph, keep=placement.kept, keep_fp32=keep_fp32, magnitudes=magnitudes)


def reduce_to_int8(
    graph: onnx_ir.Model,
    placement: Placement,
    info: ArtifactInfo,
    images: Sequence[ImageLike],
    keep_fp32: Sequence[str],
    *,
    for_cpu: bool,
    on_done: Done | None = None,
) -> QuantizationPlan:
    """Quantize the blocks of the FP32 `graph` that bear it, in place, and return the plan; see `choose_blocks`."""
    scheme = make_scheme(graph, placement, info, images, keep_fp32, for_cpu=for_cpu)
    plan = choose_blocks(graph, scheme, images, on_done)
    scheme.quantize(graph, [node for node in scheme.nodes if node.block in plan.blocks])
    return plan


def make_scheme(
    graph: onnx_ir.Model,
    placement: Placement,
    info: ArtifactInfo,
    images: Sequence[ImageLike],
    keep_fp32: Sequence[str] = (),
    *,
    for_cpu: bool,
) -> Scheme:
    """Return how INT8 is placed in the FP32 `graph`, for CPUs or for TensorRT, with ranges measured on `images`."""
    patterns = [compile_pattern(pattern, list(graph.graph)) for pattern in keep_fp32]

    def stays(name: str) -> bool:
        return any(pattern.search(name) for pattern in patterns)

    found = [node for node in find_quantizable(graph, placement) if not stays(node.name)]
    nodes = [replace(node, add=None) if node.add is not None and stays(node.add.name) else node for node in found]
    content = serialize(graph, {METADATA_KEY: info.to_json()}, __version__)
    if for_cpu:
        return make_cpu_scheme(
            graph.graph, nodes, content, _prepare(info, evenly_spaced(images, MAX_IMAGES_FOR_RANGES))
        )
    names = {name for node in nodes for name in node.quantized_values}
    return TensorRtScheme(tuple(nodes), measure_scales(content, names, _prepare(info, images)))


def _prepare(info: ArtifactInfo, images: Sequence[ImageLike]) -> Iterator[Array]:
    """Yield each image as the model's input, in every row of the batch."""
    prepare, rows = HostPreprocessor(info.preprocess), info.batch or 1
    for image in images:
        yield prepare([load_frame(image)] * rows, rows)
