"""COCO json as training samples.

sample   image uint8 (h, w, 3) RGB, boxes float32 (G, 4) xyxy in pixels, labels int64 (G,)
batch    images float32 (B, 3, H, W) in [0, 1], one `Target` per image
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.preprocess import prepare_batch
from rtdetr_deploy.sources import Frame, load_frame
from rtdetr_train.boxes import to_centres
from rtdetr_train.matcher import Target

SMALLEST_SIDE = 1.0
"""Boxes with a side below this many pixels are left out: they can't be learned and make losses degenerate."""


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
        keep = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_SIDE).all(axis=1)
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
    """Read a COCO json whose files lie in the folder `images`; crowd regions are left out.

    Raises `OptionError` when the json or an image is missing or the json is none.
    """
    path, folder = Path(path), Path(images)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted((int(item["id"]), str(item["name"])) for item in content["categories"])
        files = {int(item["id"]): folder / item["file_name"] for item in content["images"]}
        labels = {number: label for label, (number, _) in enumerate(categories)}
        found: dict[int, list[tuple[Sequence[float], int]]] = {number: [] for number in files}
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                x, y, width, height = (float(value) for value in item["bbox"])
                found[int(item["image_id"])].append(((x, y, x + width, y + height), labels[int(item["category_id"])]))
    except OSError as error:
        raise OptionError(f"can't read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"{path} is no COCO json with images, annotations and categories: {error!r}") from error
    if not files or not labels or not any(found.values()):
        what = "images" if not files else "categories" if not labels else "objects"
        raise OptionError(f"{path} holds no {what}")
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise OptionError(f"{len(missing)} images of {path} are not in {folder}, {missing[0].name} is the first")
    return CocoData(
        tuple(name for _, name in categories),
        tuple(files.values()),
        tuple(
            (
                np.array([box for box, _ in rows], np.float32).reshape(-1, 4),
                np.array([label for _, label in rows], np.int64),
            )
            for rows in found.values()
        ),
    )


def collate(samples: Sequence[Sample], height: int, width: int) -> tuple[Tensor, list[Target]]:
    """Resize samples to `height` x `width` (Pillow's bilinear, as released models are trained) and stack them."""
    frames = [Frame(sample.image, rgb=True) for sample in samples]
    images = torch.from_numpy(prepare_batch(frames, height, width, resizer="pillow"))
    targets = []
    for sample in samples:
        rows, columns = sample.image.shape[:2]
        scale = torch.tensor([columns, rows, columns, rows], dtype=torch.float32)
        targets.append(Target(torch.from_numpy(sample.labels), to_centres(torch.from_numpy(sample.boxes) / scale)))
    return images, targets
