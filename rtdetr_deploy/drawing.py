"""Boxes and labels on a picture, readable at any image size, one stable colour per class."""

from __future__ import annotations

import colorsys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.fonts import open_font
from rtdetr_deploy.words import printable

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.Image import Image

    from rtdetr_deploy.detections import Detection, Detections
    from rtdetr_deploy.fonts import Font

RGB = tuple[int, int, int]
Area = tuple[float, float, float, float]

GOLDEN_RATIO = 0.618034
"""Steps of this size around the colour circle keep neighbouring class indices far apart."""


LONGEST_NAME = 60
"""Longer class names are cut in labels."""


def class_color(label: int) -> RGB:
    """Return the RGB colour (0 .. 255) of class `label`; the same for every image and run."""
    hue = (label * GOLDEN_RATIO + 0.02) % 1.0
    value = (0.95, 0.75)[label // 12 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.80, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(detections: Detections, pixels: NDArray[np.uint8], font: str | Path | None = None) -> Image:
    """Return RGB `pixels` (h, w, 3) as a picture with a box and a label per detection; the best are on top.

    `font` names a font file; by default an installed font that has the names' characters is found. A name that the
    font (or every installed one) lacks characters of is drawn as "class 3", with a warning.
    """
    from PIL import Image as PILImage
    from PIL import ImageDraw

    picture = PILImage.fromarray(pixels)
    shorter = min(picture.size)
    line = max(1, round(shorter / 250))
    canvas = ImageDraw.Draw(picture)
    found = list(detections)
    writer = _Writer(max(11, round(shorter / 36)), font)
    labels = _place_labels(canvas, found, writer, max(2, line), picture.size)
    for detection in reversed(found):
        x1, y1, x2, y2 = detection.box
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        canvas.rectangle(corners, outline=class_color(detection.label), width=line)
    for label in reversed(labels):
        canvas.rectangle(label.area, fill=label.background)
        canvas.text(label.origin, label.text, fill=_text_color(label.background), font=label.font)
    return picture


class _Writer:
    """Chooses text and font of the labels of one picture."""

    def __init__(self, size: int, font: str | Path | None) -> None:
        self._size, self._file = size, font
        self._chosen: dict[str, tuple[str, Font]] = {}

    def write(self, detection: Detection) -> tuple[str, Font]:
        """Return what stands on the label, and the font for it."""
        name = detection.name
        if name not in self._chosen:
            self._chosen[name] = self._choose(detection)
        text, font = self._chosen[name]
        return f"{text} {detection.score:.2f}", font

    def _choose(self, detection: Detection) -> tuple[str, Font]:
        name = printable(detection.name)
        text = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        font = open_font(text + "0123456789.", self._size, self._file)
        if font is not None:
            return text, font
        plain = open_font("", self._size)
        assert plain is not None
        where = f"the font {self._file} lacks" if self._file is not None else "no installed font has all"
        hint = "give another" if self._file is not None else "install one, or give its file"
        warnings.warn(
            f"{where} characters of the class name {text!r}, which is drawn as 'class {detection.label}'; {hint} "
            "(`font`)",
            stacklevel=2,
        )
        return f"class {detection.label}", plain


@dataclass(frozen=True)
class _Label:
    """Text, its background's `area` (x1, y1, x2, y2), and the `origin` from which Pillow draws it."""

    text: str
    area: Area
    origin: tuple[float, float]
    background: RGB
    font: Font


def _place_labels(
    canvas: ImageDraw.ImageDraw,
    found: Sequence[Detection],
    writer: _Writer,
    pad: int,
    size: tuple[int, int],
) -> list[_Label]:
    """Give every label, best first, the first place around its box that is inside the picture and still free."""
    labels: list[_Label] = []
    for detection in found:
        text, font = writer.write(detection)
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        places = list(_places(detection.box, width, height, size))
        free = (place for place in places if not any(_overlap(place, label.area) for label in labels))
        area = next(free, places[0])
        origin = (area[0] + pad - left, area[1] + pad - top)
        labels.append(_Label(text, area, origin, class_color(detection.label), font))
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
