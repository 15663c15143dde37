"""Pixels of pictures that Pillow has opened: small ones of large JPEG files, turned as EXIF says, with few copies.

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which leaves out most of the work (libjpeg's scaled inverse DCT).
Where a model shrinks a picture anyway, that loses nothing: each pixel is then the mean of those it stands for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Enough = Callable[[tuple[int, int]], tuple[int, int]]
"""From a picture's (height, width) to the smallest one that will do."""
DIVISORS = (8, 4, 2)
ORIENTATION = 0x0112
"""EXIF's tag of how a picture is turned; from 5 up, height and width change places."""
ANIMATED = frozenset({"GIF", "PNG", "WEBP", "TIFF", "AVIF"})
"""Formats whose further frames or pages are pictures in their own right; those of an MPO (a phone's JPEG) are not."""
_STRIP = 1 << 18
"""Pixels that are copied at once: a large picture's pixels would otherwise be in memory three times."""


def reduce_jpeg(image: Image, enough: Enough) -> int:
    """Let an opened JPEG be decoded at 1/2, 1/4 or 1/8 where that leaves `enough`; return the divisor, 1 if none does.

    Sizes that the divisor doesn't divide are not reduced: the last pixels would reach beyond the picture. What is
    returned is what the decoder took on: it may decode a picture larger than it was asked to, or whole.
    """
    if image.format not in ("JPEG", "MPO"):
        return 1
    width, height = image.size
    turned = _is_turned(image)
    rows, columns = enough((width, height) if turned else (height, width))
    if turned:
        rows, columns = columns, rows
    for divisor in DIVISORS:
        whole = width % divisor == 0 and height % divisor == 0
        if whole and width // divisor >= columns and height // divisor >= rows:
            image.draft(None, (width // divisor, height // divisor))
            return width // image.size[0]
    return 1


def _is_turned(image: Image) -> bool:
    """Tell whether EXIF makes a picture's columns its rows."""
    with suppress(Exception):  # damaged EXIF
        return image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return False


def to_pixels(image: Image, *, deep: bool, own: bool) -> NDArray[np.uint8]:
    """Return RGB `(h, w, 3)`; of `deep` pictures (16 bits of gray) the high byte. One of its `own` may be changed."""
    from PIL import ImageOps

    turned = image
    image.load()
    with suppress(Exception):  # damaged EXIF
        if own:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            turned = ImageOps.exif_transpose(image)
    if deep:
        gray = (np.asarray(turned).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    return _copy(turned if turned.mode == "RGB" else turned.convert("RGB"))


def _copy(image: Image) -> NDArray[np.uint8]:
    width, height = image.size
    rows = max(1, _STRIP // width)
    if rows >= height:
        return np.asarray(image)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def mention_frames(image: Image) -> None:
    """Warn once that further frames or pages are not looked at."""
    several = False
    with suppress(Exception):  # a damaged second frame
        several = image.format in ANIMATED and getattr(image, "is_animated", False)
    if several:
        warnings.warn("an image has several frames or pages; only the first is used, here and later", stacklevel=1)
