"""COCO json as training samples.

sample   image uint8 (h, w, 3) RGB, boxes float32 (G, 4) xyxy in pixels, labels int64 (G,)
batch    images float32 (B, 3, H, W) in [0, 1], and their `Targets`
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.evaluate.coco_json import CocoObject, read_coco_json
from rtdetr_deploy.images.frame import Frame, load_frame
from rtdetr_deploy.images.preprocess import prepare_batch
from rtdetr_deploy.model.boxes import xyxy_to_cxcywh
from rtdetr_train.matcher import Targets, join_targets

MIN_SIDE = 1.0
"""Boxes with a side below this many pixels are left out: they can't be learned and make losses degenerate."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """An image and its objects (layout above)."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]

    def keep_usable(self) -> Sample:
        """Clip boxes to the image and drop those that are too small."""
        height, width = self.image.shape[:2]
        boxes = np.clip(self.boxes, 0, np.array([width, height, width, height], np.float32))
        keep = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
        return Sample(self.image, boxes[keep], self.labels[keep])


@dataclass(frozen=True)
class CocoData:
    """The images of a COCO json with their objects; labels count the categories by id from 0."""

    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    objects: tuple[tuple[NDArray[np.float32], NDArray[np.int64]], ...]

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Sample:
        """Read image `index`. Raises `ImageError`."""
        boxes, labels = self.objects[index]
        return Sample(load_frame(self.files[index]).to_rgb(), boxes, labels).keep_usable()


def read_coco(path: str | Path, images: str | Path) -> CocoData:
    """Read a COCO json as `read_coco_json` does; crowd regions and boxes below `MIN_SIDE` are left out.

    Raises `OptionError` as it does, and where nothing is left to learn.
    """
    truth = read_coco_json(path, images)
    labels = {number: label for label, (number, _) in enumerate(truth.categories)}
    found: dict[int, list[CocoObject]] = {number: [] for number, _ in truth.images}
    objects = [thing for thing in truth.objects if not thing.crowd]
    large = [thing for thing in objects if min(thing.bbox[2:]) >= MIN_SIDE]
    if not large:
        raise OptionError(f"{path} has no box to learn: all are crowd regions or smaller than {MIN_SIDE:g} pixel")
    if len(large) < len(objects):
        _LOG.warning(
            "%s: boxes smaller than 1 pixel are left out (%d of %d)", path, len(objects) - len(large), len(objects)
        )
    for thing in large:
        found[thing.image_id].append(thing)
    return CocoData(
        tuple(name for _, name in truth.categories),
        tuple(file for _, file in truth.images),
        tuple(_boxes_and_labels(things, labels) for things in found.values()),
    )


def _boxes_and_labels(
    things: Sequence[CocoObject], labels: Mapping[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    boxes = np.array([thing.bbox for thing in things], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float32), np.array([labels[thing.category_id] for thing in things], np.int64)


def collate(samples: Sequence[Sample], height: int, width: int) -> tuple[Tensor, Targets]:
    """Resize samples to `height` x `width` (Pillow's bilinear, as released models are trained) and stack them."""
    frames = [Frame(sample.image, rgb=True) for sample in samples]
    images = torch.from_numpy(prepare_batch(frames, height, width, resizer="pillow"))
    return images, join_targets([_labels_and_boxes(sample) for sample in samples])


def _labels_and_boxes(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return the labels `(G,)` of an image and its boxes `(G, 4)` as cxcywh in [0, 1]."""
    height, width = sample.image.shape[:2]
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return torch.from_numpy(sample.labels), xyxy_to_cxcywh(torch.from_numpy(sample.boxes) / scale)
