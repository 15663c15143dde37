"""Images as third-party detectors want them, and their boxes back in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetr_bench.models.nms import Floats
from rtdetr_bench.models.yolo_layouts import YoloSignature
from rtdetr_deploy.images.frame import Frame

GREY = 114
"""What the letterbox is filled with, as YOLOs are trained."""


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


def letterbox(frames: Sequence[Frame], signature: YoloSignature) -> tuple[NDArray[Any], list[Placement]]:
    """Return the frames as the model's input (B, 3, H, W) in [0, 1], RGB, and where each lies in it.

    YOLOs see the whole image at its own aspect ratio on grey; models with queries see it stretched.
    """
    height, width = signature.height, signature.width
    batch = np.empty((len(frames), 3, height, width), np.float32)
    placements = []
    for slot, frame in zip(batch, frames, strict=True):
        rows, columns = frame.size
        new_width, new_height = _scaled(rows, columns, signature)
        left, top = (width - new_width) // 2, (height - new_height) // 2
        canvas = np.full((height, width, 3), GREY, np.uint8)
        resized = cv2.resize(frame.pixels, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        canvas[top : top + new_height, left : left + new_width] = resized
        for channel, plane in enumerate(cv2.split(canvas)):
            np.multiply(plane, np.float32(1 / 255), out=slot[channel if frame.rgb else 2 - channel])
        placements.append(Placement((new_width / columns, new_height / rows), (left, top), frame.size))
    return batch.astype(signature.images.dtype, copy=False), placements


def _scaled(rows: int, columns: int, signature: YoloSignature) -> tuple[int, int]:
    """Return the width and height to which an image of these rows and columns is resized."""
    if signature.layout.stretched:
        return signature.width, signature.height
    ratio = min(signature.height / rows, signature.width / columns)
    return max(1, round(columns * ratio)), max(1, round(rows * ratio))
