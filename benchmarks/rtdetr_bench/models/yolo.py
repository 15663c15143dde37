"""What third-party detectors return, recognised by shape, and the candidates in it.

    anchors     (B, N, 5 + K)   YOLOv5, v6, v7: cxcywh in pixels of the input, objectness, K class scores
    channels    (B, 4 + K, N)   YOLOv8, 9, 11: cxcywh in pixels of the input, K class scores
    end-to-end  (B, N, 6)       YOLOv10, 26: xyxy in pixels of the input, score, class; nothing to suppress
    queries     (B, N, 4 + K)   Ultralytics' RT-DETR up to 8.3: cxcywh in [0, 1], K class scores; nothing to suppress
    selected    (B, N, 6)       the same from 8.4 on, told by its metadata: cxcywh in [0, 1], score, class
    inserted    boxes, scores, labels, images of `insert_nms`, or the four of EfficientNMS_TRT

In the first two N is the number of cells of the grids at strides 8, 16 and 32 (with 4 or 64 in some models), three
boxes each in v5 and v7; a file that leaves its size open leaves N open too.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.models.nms import Candidates, Floats
from rtdetr_deploy import ArtifactError
from rtdetr_deploy.boxes import cxcywh_to_xyxy
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.runtimes import Array, Runtime, TensorSpec
from rtdetr_deploy.words import plural

Layout = Literal["anchors", "channels", "end-to-end", "queries", "selected", "inserted", "plugin"]
GRIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
NMS_METADATA = "rtdetr_bench.nms"
"""Key under which `insert_nms` stores its thresholds."""
GREY = 114
"""What the letterbox is filled with, as YOLOs are trained."""
INSERTED = ("nms_boxes", "nms_scores", "nms_labels", "nms_images")
"""Outputs that `insert_nms` adds: (M, 4) xyxy, (M,), (M,), (M,) over all images of the batch."""
PLUGIN = ("num_dets", "det_boxes", "det_scores", "det_classes")
"""Outputs of EfficientNMS_TRT: (B, 1), (B, M, 4) xyxy, (B, M), (B, M)."""
WHOLE: frozenset[Layout] = frozenset({"queries", "selected"})
"""Layouts of RT-DETRs, which see the image stretched to their input, without a letterbox."""
NEEDS_NMS: frozenset[Layout] = frozenset({"anchors", "channels"})


@dataclass(frozen=True)
class YoloContract:
    """What a third-party detector takes and returns; `batch` is None where it is dynamic."""

    images: TensorSpec
    height: int
    width: int
    batch: int | None
    layout: Layout
    outputs: tuple[str, ...]
    class_names: tuple[str, ...]


def recognize_yolo(runtime: Runtime, name: str, size: tuple[int, int] | None = None) -> YoloContract:
    """Return the contract of a loaded model; `size` (height, width) is needed where the file leaves it open.

    Raises `ArtifactError` when its inputs and outputs are not a YOLO's.
    """
    images = runtime.inputs[0]
    if len(runtime.inputs) != 1 or len(images.shape) != 4 or images.shape[1] != 3 or images.dtype.kind != "f":
        raise ArtifactError(f"{name} is not a detector that is known here: it takes {_describe(runtime.inputs)}")
    task = runtime.metadata.get("task", "detect")  # this, "head" and "names" are what Ultralytics' exporter stores
    if task != "detect":
        raise ArtifactError(f"{name} is not a detector: its task is {task}")
    height, width = (given or asked for given, asked in zip(images.shape[2:], size or (None, None), strict=True))
    if height is None or width is None:
        raise ArtifactError(f"{name} leaves its image size open; say which to use with --size")
    queries = "RTDETR" in runtime.metadata.get("head", "")
    layout, outputs, classes = _find_layout(runtime.outputs, name, _box_counts(height, width), queries=queries)
    names = _read_names(runtime.metadata)
    if names and classes is not None and len(names) != classes:
        raise ArtifactError(
            f"{name} has {plural(len(names), 'class name')} and {plural(classes, 'score')} for each box"
        )
    if not names:
        names = tuple(f"class {index}" for index in range(classes or 0))
    return YoloContract(images, height, width, images.shape[0], layout, outputs, names)


def _box_counts(height: int, width: int) -> frozenset[int]:
    """Return the numbers of boxes that YOLOs have for an input: a box per cell of their grids, or three."""
    cells = {sum((height // stride) * (width // stride) for stride in grid) for grid in GRIDS}
    return frozenset(cells | {3 * count for count in cells})


def _find_layout(
    specs: Sequence[TensorSpec], name: str, counts: frozenset[int], *, queries: bool = False
) -> tuple[Layout, tuple[str, ...], int | None]:
    """Return the layout, the outputs that hold it, and the number of classes where the shape tells.

    Models of three axes' maps beside their boxes (YOLOv7 without --end2end) have one output of rank 3 among others.
    """
    names = {spec.name for spec in specs}
    for layout, wanted in (("inserted", INSERTED), ("plugin", PLUGIN)):
        if names >= set(wanted):
            return layout, wanted, None  # type: ignore[return-value]
    flat = [spec for spec in specs if len(spec.shape) == 3]
    if len(flat) == 1:
        output, (rows, columns) = (flat[0].name,), flat[0].shape[1:]
        if rows is not None and rows >= 5 and (columns is None or columns in counts) and not queries:
            return "channels", output, rows - 4
        if columns is not None and columns >= 6 and (rows is None or rows in counts) and not queries:
            return "anchors", output, columns - 5
        if rows is not None and columns == 6:
            return "selected" if queries else "end-to-end", output, None
        if rows is not None and columns is not None and columns >= 5 and (queries or rows > columns):
            return "queries", output, columns - 4
    raise ArtifactError(
        f"{name} is not a detector that is known here: it returns {_describe(specs)}; expected RT-DETR's labels, "
        "boxes, scores (or logits, boxes), or one output (B, 4+K, N), (B, N, 5+K) or (B, N, 6) as YOLOs have"
    )


def _describe(specs: Sequence[TensorSpec]) -> str:
    parts = [f"{spec.name} ({', '.join('?' if axis is None else str(axis) for axis in spec.shape)})" for spec in specs]
    return ", ".join(parts)


def _read_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the class names that Ultralytics' exporter stores, a Python dict as text."""
    try:
        stored = ast.literal_eval(metadata.get("names", "{}"))
    except (ValueError, SyntaxError):
        return ()
    return tuple(str(stored[key]) for key in sorted(stored)) if isinstance(stored, dict) else ()


@dataclass(frozen=True)
class Placement:
    """How an image (height, width) lies in the model's input: scaled by `scale` (x, y), then moved by `shift`."""

    scale: tuple[float, float]
    shift: tuple[float, float]
    size: tuple[int, int]

    def to_image(self, boxes: Floats) -> Floats:
        """Return xyxy boxes of the input in pixels of the image, clipped to it."""
        height, width = self.size
        moved = (boxes - np.array(self.shift * 2, np.float32)) / np.array(self.scale * 2, np.float32)
        return np.clip(moved, 0.0, np.array((width, height) * 2, np.float32)).astype(np.float32)


def letterbox(frames: Sequence[Frame], contract: YoloContract) -> tuple[NDArray[Any], list[Placement]]:
    """Return the frames as the model's input (B, 3, H, W) in [0, 1], RGB, and where each lies in it.

    YOLOs see the whole image at its own aspect ratio on grey; models with queries see it stretched.
    """
    height, width = contract.height, contract.width
    batch = np.empty((len(frames), 3, height, width), np.float32)
    placements = []
    for slot, frame in zip(batch, frames, strict=True):
        rows, columns = frame.size
        if contract.layout in WHOLE:
            new = (width, height)
        else:
            ratio = min(height / rows, width / columns)
            new = (max(1, round(columns * ratio)), max(1, round(rows * ratio)))
        left, top = (width - new[0]) // 2, (height - new[1]) // 2
        canvas = np.full((height, width, 3), GREY, np.uint8)
        canvas[top : top + new[1], left : left + new[0]] = cv2.resize(frame.pixels, new, interpolation=cv2.INTER_LINEAR)
        for channel, plane in enumerate(cv2.split(canvas)):
            np.multiply(plane, np.float32(1 / 255), out=slot[channel if frame.rgb else 2 - channel])
        placements.append(Placement((new[0] / columns, new[1] / rows), (left, top), frame.size))
    return batch.astype(contract.images.dtype, copy=False), placements


def find_candidates(outputs: Mapping[str, Array], row: int, contract: YoloContract, confidence: float) -> Candidates:
    """Return what an image's output holds above `confidence`, in pixels of the input."""
    if contract.layout == "inserted":
        boxes, scores, labels, images = (outputs[name] for name in INSERTED)
        mine = (images.reshape(-1) == row) & (scores.reshape(-1) > confidence)
        return _candidates(boxes[mine], scores.reshape(-1)[mine], labels.reshape(-1)[mine])
    if contract.layout == "plugin":
        count = int(outputs["num_dets"][row].reshape(-1)[0])
        boxes, scores, labels = (outputs[name][row][:count] for name in PLUGIN[1:])
        mine = scores > confidence
        return _candidates(boxes[mine], scores[mine], labels[mine])
    output = outputs[contract.outputs[0]][row]
    size = np.array((contract.width, contract.height) * 2, np.float32)
    if contract.layout in ("end-to-end", "selected"):
        rows = output[output[:, 4] > confidence]
        boxes = cxcywh_to_xyxy(rows[:, :4]) * size if contract.layout == "selected" else rows[:, :4]
        return _candidates(boxes, rows[:, 4], rows[:, 5])
    if contract.layout == "channels":
        labels, places = np.nonzero(output[4:] > confidence)
        return _candidates(cxcywh_to_xyxy(output[:4, places].T), output[4:][labels, places], labels)
    if contract.layout == "anchors":
        output = output[output[:, 4] > confidence]
        scores = output[:, 5:] * output[:, 4:5]
        places, labels = np.nonzero(scores > confidence)
        return _candidates(cxcywh_to_xyxy(output[places, :4]), scores[places, labels], labels)
    places, labels = np.nonzero(output[:, 4:] > confidence)
    return _candidates(cxcywh_to_xyxy(output[places, :4]) * size, output[:, 4:][places, labels], labels)


def _candidates(boxes: Array, scores: Array, labels: Array) -> Candidates:
    return Candidates(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64))
