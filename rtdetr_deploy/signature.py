"""What a model file takes and returns, recognised from its inputs and outputs.

Three kinds of file open:

- ours: `images` -> `labels, boxes, scores`, boxes xyxy in [0, 1];
- the released exporter's: `images, orig_target_sizes` -> `labels, boxes, scores`, boxes xyxy scaled by the sizes;
  fed with sizes of 1, such a file returns boxes in [0, 1] too, whatever order of width and height it expects;
- raw: `images` -> `logits, boxes`, boxes cxcywh in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rtdetr_deploy.artifacts.metadata import ArtifactInfo, OutputKind
from rtdetr_deploy.errors import ArtifactError, OptionError
from rtdetr_deploy.runtimes.protocol import Runtime, TensorSpec
from rtdetr_deploy.words import plural

EXPECTED = "expected images -> labels, boxes, scores (or logits, boxes), optionally with orig_target_sizes"


@dataclass(frozen=True)
class IOSignature:
    """Names and sizes that the Predictor works with.

    `batch` is None where it is dynamic. `sizes` is the name of the `orig_target_sizes` input, if there is one.
    `roles` maps "labels", "boxes", "scores" or "logits", "boxes" to output names.
    """

    images: TensorSpec
    sizes: TensorSpec | None
    height: int
    width: int
    batch: int | None
    raw_input: bool
    kind: OutputKind
    roles: dict[str, str]
    info: ArtifactInfo | None


def infer_signature(runtime: Runtime, name: str, size: tuple[int, int] | None = None) -> IOSignature:
    """Return the signature of a loaded model; `size` (height, width) is needed where the file leaves it open.

    Raises `ArtifactError` when the inputs or outputs are not a detector's.
    """
    if size is not None and not _is_size(size):
        raise OptionError(f"`size` is {size!r}, expected (height, width) in pixels")
    info = runtime.info
    images, sizes = _find_inputs(runtime.inputs, name)
    kind, roles = _find_outputs(runtime.outputs, name)
    raw_input = images.dtype == np.uint8
    height, width = (images.shape[1], images.shape[2]) if raw_input else (images.shape[2], images.shape[3])
    if size is not None:
        if (height or size[0], width or size[1]) != tuple(size):
            raise ArtifactError(f"{name} takes {height}x{width} images; `size` {size[0]}x{size[1]} doesn't fit")
        height, width = size
    if height is None or width is None:
        raise ArtifactError(f"{name} leaves its image size open; give `size`, its (height, width) in pixels")
    shapes = {spec.name: spec.shape for spec in runtime.outputs}
    check_outputs(kind, {role: shapes[output] for role, output in roles.items()}, name)
    batch = images.shape[0]
    if info is not None:
        found = {"outputs": kind, "height": height, "width": width, "batch": batch, "raw_input": raw_input}
        counted = {spec.name: spec.classes for spec in runtime.outputs}
        classes = shapes[roles["logits"]][-1] if kind == "raw" else counted[roles["labels"]]
        if kind == "raw" and classes is not None:
            classes = info.decoding.count_classes(classes)
        _check_info(info, found, classes, name)
    return IOSignature(images, sizes, height, width, batch, raw_input, kind, roles, info)


def _is_size(size: object) -> bool:
    return isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)


def _check_info(info: ArtifactInfo, found: Mapping[str, object], classes: int | None, name: str) -> None:
    """Raise `ArtifactError` where the stored metadata doesn't fit the file; `classes` is None where it is unknown."""
    for field, value in found.items():
        if getattr(info, field) != value:
            raise ArtifactError(
                f"{name} has {field} {value}, but its metadata says {getattr(info, field)}; export it again"
            )
    if classes is not None and classes != len(info.class_names):
        raise ArtifactError(
            f"{name} has {plural(classes, 'class')}, but its metadata names {len(info.class_names)}; export it again"
        )
    if info.max_detections < 1:
        raise ArtifactError(
            f"{name} has max_detections {info.max_detections} in its metadata, expected at least 1; export it again"
        )


def check_outputs(kind: OutputKind, shapes: Mapping[str, Sequence[int | None]], name: str) -> None:
    """Raise `ArtifactError` unless the shapes (None: unknown axis) of the outputs, by role, belong together."""
    roles = ("logits", "boxes") if kind == "raw" else ("labels", "scores", "boxes")
    rows = {shapes[role][1] for role in roles} - {None}
    if len(rows) > 1 or shapes["boxes"][-1] not in (4, None):
        found = ", ".join(f"{role} {tuple(shapes[role])}" for role in roles)
        raise ArtifactError(f"{name} has outputs that don't belong together: {found}; boxes must be (B, N, 4)")


def has_detections(runtime: Runtime) -> bool:
    """Tell whether a model's outputs are an RT-DETR's, by their names."""
    try:
        _find_outputs(runtime.outputs, "")
    except ArtifactError:
        return False
    return True


def _find_inputs(specs: Sequence[TensorSpec], name: str) -> tuple[TensorSpec, TensorSpec | None]:
    images = [spec for spec in specs if len(spec.shape) == 4 and spec.dtype.kind in "fu" and _is_image(spec)]
    sizes = [spec for spec in specs if len(spec.shape) == 2 and spec.dtype.kind in "if" and spec.shape[1] in (2, None)]
    if len(images) != 1 or len(images) + len(sizes) != len(specs) or len(sizes) > 1:
        found = ", ".join(map(str, specs)) or "none"
        raise ArtifactError(f"{name} is not an RT-DETR detector: its inputs are {found}; {EXPECTED}")
    return images[0], sizes[0] if sizes else None


def _is_image(spec: TensorSpec) -> bool:
    channels = spec.shape[3] if spec.dtype == np.uint8 else spec.shape[1]
    return channels in (3, None)


def _find_outputs(specs: Sequence[TensorSpec], name: str) -> tuple[OutputKind, dict[str, str]]:
    def find(word: str, rank: int) -> str | None:
        return next((spec.name for spec in specs if word in spec.name.lower() and len(spec.shape) == rank), None)

    roles = {
        "labels": find("label", 2),
        "boxes": find("box", 3),
        "scores": find("score", 2),
        "logits": find("logit", 3),
    }
    kinds: tuple[tuple[OutputKind, tuple[str, ...]], ...] = (
        ("detections", ("labels", "boxes", "scores")),
        ("raw", ("logits", "boxes")),
    )
    for kind, needed in kinds:
        chosen = {role: output for role in needed if (output := roles[role]) is not None}
        if len(chosen) == len(needed):
            return kind, chosen
    found = ", ".join(map(str, specs))
    raise ArtifactError(f"{name} is not an RT-DETR detector: its outputs are {found}; {EXPECTED}")
