"""Boxes and labels on a picture, readable at any image size, one stable colour per class."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from rtdetr_deploy.detections import Detection, Detections

RGB = tuple[int, int, int]
Area = tuple[float, float, float, float]

GOLDEN_RATIO = 0.618034
"""Steps of this size around the colour circle keep neighbouring class indices far apart."""


def class_color(label: int) -> RGB:
    """Return the RGB colour (0 .. 255) of class `label`; the same for every image and run."""
    hue = (label * GOLDEN_RATIO + 0.02) % 1.0
    value = (0.95, 0.75)[label // 12 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.80, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(detections: Detections, pixels: NDArray[np.uint8]) -> Image:
    """Return RGB `pixels` (h, w, 3) as a picture with a box and a label per detection; the best are on top."""
    from PIL import Image as PILImage
    from PIL import ImageDraw, ImageFont

    picture = PILImage.fromarray(pixels)
    shorter = min(picture.size)
    line = max(1, round(shorter / 250))
    font = ImageFont.load_default(size=max(11, round(shorter / 36)))
    canvas = ImageDraw.Draw(picture)
    found = list(detections)
    labels = _place_labels(canvas, found, font, max(2, line), picture.size)
    for detection in reversed(found):
        x1, y1, x2, y2 = detection.box
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        canvas.rectangle(corners, outline=class_color(detection.label), width=line)
    for label in reversed(labels):
        canvas.rectangle(label.area, fill=label.background)
        canvas.text(label.origin, label.text, fill=_text_color(label.background), font=font)
    return picture


@dataclass(frozen=True)
class _Label:
    """Text, its background's `area` (x1, y1, x2, y2), and the `origin` from which Pillow draws it."""

    text: str
    area: Area
    origin: tuple[float, float]
    background: RGB


def _place_labels(
    canvas: ImageDraw.ImageDraw,
    found: Sequence[Detection],
    font: FreeTypeFont | ImageFont,
    pad: int,
    size: tuple[int, int],
) -> list[_Label]:
    """Give every label, best first, the first place around its box that is inside the picture and still free."""
    labels: list[_Label] = []
    for detection in found:
        text = f"{detection.name} {detection.score:.2f}"
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        places = list(_places(detection.box, width, height, size))
        free = (place for place in places if not any(_overlap(place, label.area) for label in labels))
        area = next(free, places[0])
        origin = (area[0] + pad - left, area[1] + pad - top)
        labels.append(_Label(text, area, origin, class_color(detection.label)))
    return labels


def _places(box: Area, width: float, height: float, size: tuple[int, int]) -> Iterator[Area]:
    """Yield areas for a label: above the box, inside at its top, inside at its bottom, below it."""
    x1, y1, x2, y2 = box
    for x in (x1, x2 - width):
        left = max(0.0, min(x, size[0] - width))
        for y in (y1 - height, y1, y2 - height, y2):
            upper = max(0.0, min(y, size[1] - height))
            yield (left, upper, left + width, upper + height)


def _overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_color(background: RGB) -> RGB:
    """Black on light colours, white on dark ones (luma of ITU-R BT.601)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
