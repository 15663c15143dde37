"""Boxes and labels on a picture, readable at any image size, one stable colour per class."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

from rtdetr_deploy.sources import Color, ImageLike, load_frame

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from rtdetr_deploy.detections import Detection, Detections

RGB = tuple[int, int, int]

GOLDEN_RATIO = 0.618034
"""Steps of this size around the colour circle keep neighbouring class indices far apart."""


def class_color(label: int) -> RGB:
    """Return the RGB colour (0 .. 255) of class `label`; the same for every image and run."""
    hue = (label * GOLDEN_RATIO + 0.02) % 1.0
    value = (0.95, 0.75)[label // 12 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.80, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(detections: Detections, image: ImageLike, color: Color = "bgr") -> Image:
    """Return a copy of `image` with a box and a label per detection; the best are drawn last, on top."""
    from PIL import Image as PILImage
    from PIL import ImageDraw, ImageFont

    picture = PILImage.fromarray(load_frame(image, color=color).to_rgb())
    shorter = min(picture.size)
    line = max(1, round(shorter / 250))
    font = ImageFont.load_default(size=max(10, round(shorter / 36)))
    canvas = ImageDraw.Draw(picture)
    for found in reversed(list(detections)):
        _draw_box(canvas, found, line)
    for found in reversed(list(detections)):
        _draw_label(canvas, found, line, font, picture.size)
    return picture


def _draw_box(canvas: ImageDraw.ImageDraw, found: Detection, line: int) -> None:
    x1, y1, x2, y2 = found.box
    canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=class_color(found.label), width=line)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    found: Detection,
    line: int,
    font: FreeTypeFont | ImageFont,
    size: tuple[int, int],
) -> None:
    """Put the label above the box, or inside it where there is no room, and never outside the picture."""
    text = f"{found.name} {found.score:.2f}"
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    pad = max(2, line)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0.0, min(found.box[0], size[0] - width))
    y = found.box[1] - height if found.box[1] >= height else min(found.box[1], max(0, size[1] - height))
    background = class_color(found.label)
    canvas.rectangle((x, y, x + width, y + height), fill=background)
    canvas.text((x + pad - left, y + pad - top), text, fill=_text_color(background), font=font)


def _text_color(background: RGB) -> RGB:
    """Black on light colours, white on dark ones (luma of ITU-R BT.601)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
