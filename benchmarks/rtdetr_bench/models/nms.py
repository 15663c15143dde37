"""Non-maximum suppression as people run it beside a YOLO.

Boxes suppress boxes of their own class only. All three ways take the same candidates: every pair of a box and a class
whose score exceeds the threshold (several classes for one box, as the published AP figures are made).

    cv2     OpenCV's NMSBoxesBatched, the fastest on a CPU (the default)
    numpy   greedy, the way of torchvision's batched_nms: classes are moved apart, then all boxes are treated at once
    graph   in the ONNX file itself, see `insert_nms`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy import OptionError
from rtdetr_deploy.options import option

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Method = Literal["cv2", "numpy"]

MAX_CANDIDATES = 30_000
"""Candidates of an image that are looked at, best first: the limit of Ultralytics' validation."""


@dataclass(frozen=True)
class NmsOptions:
    """Thresholds of score and IoU, both in [0, 1], detections kept per image, and the implementation.

    `threshold` is that of all models, whether they need NMS or not.

    The default thresholds are those at which the published AP of YOLOs is measured (arXiv 2304.08069, section 5.1).
    """

    title: ClassVar[str] = "thresholds"

    threshold: float = option(0.001, "score threshold of all models", type=float, metavar="X", old=("--confidence",))
    iou: float = option(0.7, "IoU threshold of NMS", type=float, metavar="X")
    max_detections: int = 300
    method: Method = option("cv2", "implementation of NMS outside the graph", choices=get_args(Method), flag="--nms")

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("iou", self.iou)):
            if not 0.0 <= value <= 1.0:
                raise OptionError(f"`{name}` is {value}, expected a number from 0 to 1")
        if self.max_detections < 1:
            raise OptionError(f"`max_detections` is {self.max_detections}, expected a number from 1 up")
        if self.method not in METHODS:
            raise OptionError(f"`method` is {self.method!r}, expected one of {', '.join(METHODS)}")


@dataclass(frozen=True)
class Candidates:
    """Boxes before suppression: `boxes (N, 4)` xyxy in pixels, `scores (N,)`, `labels (N,)`."""

    boxes: Floats
    scores: Floats
    labels: Ints

    def __len__(self) -> int:
        return len(self.scores)


def suppress(candidates: Candidates, options: NmsOptions) -> Ints:
    """Return the indices of the candidates that are kept, best first."""
    order = np.argsort(-candidates.scores, kind="stable")[:MAX_CANDIDATES]
    if not len(order):
        return order
    boxes, scores, labels = candidates.boxes[order], candidates.scores[order], candidates.labels[order]
    kept = METHODS[options.method](boxes, scores, labels, options)
    result: Ints = order[kept[: options.max_detections]]
    return result


def _numpy(boxes: Floats, scores: Floats, labels: Ints, options: NmsOptions) -> Ints:
    """Greedy suppression of boxes that are sorted by score."""
    low = boxes.min()
    apart = boxes + (labels * (boxes.max() - low + 1.0))[:, None].astype(np.float32)
    areas = (apart[:, 2] - apart[:, 0]) * (apart[:, 3] - apart[:, 1])
    rest = np.arange(len(apart))
    kept: list[np.int64] = []
    while len(rest) and len(kept) < options.max_detections:
        best, rest = rest[0], rest[1:]
        kept.append(best)
        overlap = np.minimum(apart[best, 2:], apart[rest, 2:]) - np.maximum(apart[best, :2], apart[rest, :2])
        shared = np.clip(overlap, 0.0, None).prod(axis=1)
        rest = rest[shared <= options.iou * (areas[best] + areas[rest] - shared)]
    return np.array(kept, np.int64)


def _cv2(boxes: Floats, scores: Floats, labels: Ints, options: NmsOptions) -> Ints:
    sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(sizes.tolist(), scores.tolist(), labels.tolist(), options.threshold, options.iou)
    return np.sort(np.asarray(kept, np.int64).reshape(-1))


METHODS: dict[Method, Callable[[Floats, Floats, Ints, NmsOptions], Ints]] = {"cv2": _cv2, "numpy": _numpy}
