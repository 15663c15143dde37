"""The result of detecting objects in one image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.artifacts.class_names import Classes, as_classes, find_labels
from rtdetr_deploy.errors import ImageError, MissingPackageError, OptionError
from rtdetr_deploy.images.frame import MAX_PIXELS, Color, ImageLike, load_frame

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Detection:
    """One object: `box` (x1, y1, x2, y2) in pixels, `score` in [0, 1], `label` class index, `name` of the class."""

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """N objects, sorted by score (best first).

    `boxes (N, 4)` float32 xyxy in pixels of the original image, inside it; `scores (N,)` float32 in [0, 1];
    `labels (N,)` int64 class indices; `names` one class name per detection; `class_names` all that the model knows, in
    the order of the labels, empty where that is unknown.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.labels.shape != (count,):
            raise OptionError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape}, labels {self.labels.shape} and "
                f"{count} names don't belong together; expected (N, 4), (N,), (N,) and N"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any] | list[int] | list[bool]) -> Detections: ...
    def __getitem__(
        self, index: int | np.integer[Any] | slice | NDArray[Any] | list[int] | list[bool]
    ) -> Detection | Detections:
        """Return one detection for an integer; for a slice, mask or list of indices, those detections."""
        if isinstance(index, (int, np.integer)):
            x1, y1, x2, y2 = (float(value) for value in self.boxes[index])
            return Detection((x1, y1, x2, y2), float(self.scores[index]), int(self.labels[index]), self.names[index])
        if isinstance(index, list) and not index:  # NumPy takes an empty list for floats
            index = slice(0)
        rows = np.arange(len(self))[index]
        names = tuple(self.names[row] for row in rows)
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], names, self.class_names)

    def filter(
        self,
        *,
        threshold: float = 0.0,
        classes: Classes | None = None,
        min_area: float = 0.0,
    ) -> Detections:
        """Keep scores >= `threshold`, the given `classes` (names or indices), and boxes of at least `min_area` px^2.

        Raises `OptionError` for a class that the model doesn't have, where `class_names` tells.
        """
        keep = (self.scores >= check_threshold(threshold)) & (self.areas() >= min_area)
        if classes is not None:
            wanted = set(as_classes(classes))
            if self.class_names:
                find_labels(wanted, self.class_names)
            chosen = [label in wanted or name in wanted for label, name in zip(self.labels, self.names, strict=True)]
            keep &= np.array(chosen, bool)
        return self[keep]

    def areas(self) -> NDArray[np.float32]:
        """Return the area of each box in square pixels, `(N,)`."""
        size = self.boxes[:, 2:] - self.boxes[:, :2]
        area: NDArray[np.float32] = size[:, 0] * size[:, 1]
        return area

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one dict per detection: `box` [x1, y1, x2, y2] in pixels, `score`, `label`, `name`."""
        return [{"box": list(d.box), "score": d.score, "label": d.label, "name": d.name} for d in self]

    def to_json(self) -> str:
        """Return `to_dicts()` as JSON text on one line."""
        return json.dumps(self.to_dicts(), ensure_ascii=False)

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return COCO result entries: `image_id`, `category_id`, `bbox` [x, y, width, height] in pixels, `score`.

        `category_ids` holds the json's id of each label; without it the label itself is the id. For released COCO
        checkpoints pass `rtdetr_deploy.COCO_CATEGORY_IDS`.
        """
        entries = []
        for found in self:
            if category_ids is not None and found.label >= len(category_ids):
                raise OptionError(f"label {found.label} has no category id; {len(category_ids)} ids were given")
            x1, y1, x2, y2 = found.box
            category = found.label if category_ids is None else int(category_ids[found.label])
            box = [x1, y1, x2 - x1, y2 - y1]
            entries.append({"image_id": int(image_id), "category_id": category, "bbox": box, "score": found.score})
        return entries

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections` with `class_name` in its data (needs the package `supervision`)."""
        try:
            import supervision
        except ImportError as error:
            raise MissingPackageError(f"to_supervision needs supervision ({error}): pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(
        self,
        image: ImageLike,
        *,
        color: Color = "bgr",
        max_pixels: int = MAX_PIXELS,
        font: str | Path | None = None,
    ) -> Image:
        """Return `image` as a PIL image with boxes and labels.

        `image` is a path, bytes, PIL image, `Frame`, or array in the order `color`; `max_pixels` is the largest that is
        decoded.
        `font` is a font file for the labels; by default an installed one is found that has the characters of the class
        names. Where there is none, such a name is drawn as "class 3", and a warning says so.

        Raises `ImageError` for an unusable image, and for a `Frame` that has fewer pixels than its picture.
        """
        from rtdetr_deploy.drawing import draw_detections

        frame = load_frame(image, color=color, max_pixels=max_pixels)
        if frame.reduction != 1:
            raise ImageError(
                f"the frame was decoded at 1/{frame.reduction} of its size; draw on the image file itself, or take the "
                "frame from stream_results with `whole_frames=True`"
            )
        return draw_detections(self, frame.to_rgb(), font)


def check_threshold(threshold: float) -> float:
    """Return `threshold`; `OptionError` unless it lies in [0, 1]."""
    if not isinstance(threshold, (int, float, np.number)) or not 0.0 <= threshold <= 1.0:
        raise OptionError(f"`threshold` is {threshold!r}, expected a number from 0 to 1")
    return float(threshold)
