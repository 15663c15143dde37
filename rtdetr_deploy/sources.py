"""Whatever a user calls an image, as pixels; and the image files behind paths, folders and globs.

Files are decoded by Pillow: it reports truncated files, applies EXIF orientation, and reads a file's size before
decoding it, so that a decompression bomb is refused.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike = Union[str, Path, bytes, "Image", NDArray[Any]]
Color = Literal["bgr", "rgb"]

MAX_PIXELS = 89_478_485
"""Largest image that is decoded unless the caller allows more: Pillow's own limit, 256 MiB of RGB."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"})


@dataclass(frozen=True)
class Frame:
    """Pixels `(h, w, 3)` uint8, and whether their channels are RGB (else BGR)."""

    pixels: NDArray[np.uint8]
    rgb: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def to_rgb(self) -> NDArray[np.uint8]:
        """Return the pixels as a contiguous RGB array."""
        return np.ascontiguousarray(self.pixels if self.rgb else self.pixels[:, :, ::-1])


def load_frame(image: ImageLike, *, color: Color = "bgr", max_pixels: int = MAX_PIXELS) -> Frame:
    """Return the pixels of a path, encoded bytes, PIL image or array.

    Arrays are uint8 or uint16 (full range; the low byte is dropped), of shape (h, w), (h, w, 1), (h, w, 3) or
    (h, w, 4); channels are in the order `color`, alpha is dropped. `color` concerns arrays alone. Files are
    turned as their EXIF orientation says; a PIL image is too.

    Raises `ImageError` when the image can't be read, is empty, has more than `max_pixels` pixels, or another dtype.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, color)
    if isinstance(image, (str, Path)):
        return _from_file(Path(image), max_pixels)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(image), "the encoded image", max_pixels)
    if hasattr(image, "convert") and hasattr(image, "getexif"):
        return Frame(_pil_to_rgb(image, "the PIL image", max_pixels), rgb=True)
    raise ImageError(f"can't read an image from {type(image).__name__}; pass a path, bytes, PIL image or numpy array")


def _from_array(array: NDArray[Any], color: Color) -> Frame:
    if array.dtype not in (np.uint8, np.uint16):
        hint = " (it holds NaN)" if array.dtype.kind == "f" and np.isnan(array).any() else ""
        raise ImageError(
            f"image array is {array.dtype}{hint}, expected uint8 in 0 .. 255 or uint16; "
            "for floats in [0, 1] pass (image * 255).round().astype('uint8')"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"image array has shape {array.shape}, expected (height, width) or (height, width, 1, 3 or 4 channels); "
            "for several images call detect_batch"
        )
    if 0 in array.shape:
        raise ImageError(f"image array of shape {array.shape} has no pixels")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
    return Frame(np.ascontiguousarray(array), rgb=color == "rgb")


def _from_file(path: Path, max_pixels: int) -> Frame:
    try:
        with path.open("rb") as file:
            return _decode(file, str(path), max_pixels)
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder; use rtdetr_deploy.find_images to list the images in it") from error
    except OSError as error:
        raise ImageError(f"can't open {path}: {error.strerror or error}") from error


def _decode(file: Any, name: str, max_pixels: int) -> Frame:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return Frame(_pil_to_rgb(image, name, max_pixels), rgb=True)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image in a known format, or it is empty") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more pixels than Pillow decodes (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        raise ImageError(f"{name} is damaged or incomplete: {error}") from error


def _pil_to_rgb(image: Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    from PIL import ImageOps

    width, height = image.size
    if width * height == 0:
        raise ImageError(f"{name} has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height}, more than the {max_pixels} pixels allowed; "
            "raise the limit with Predictor(..., max_pixels=...) if the image is trusted"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        gray = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels, expected 8 or 16 bits per channel")
    return np.asarray(image.convert("RGB"))


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Return the image files behind paths, folders (searched recursively) and glob patterns, sorted per source.

    A path that names a file is kept whatever its suffix is. Raises `ImageError` for a source without any image.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            images = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        elif path.exists():
            images = [path]
        else:
            images = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
            images = [file for file in images if file.is_file()]
        if not images:
            reason = "holds no image" if path.is_dir() else "does not exist"
            raise ImageError(f"{source} {reason}; known suffixes are {', '.join(sorted(SUFFIXES))}")
        found += images
    return list(dict.fromkeys(found))
