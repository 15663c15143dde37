"""Whatever a user calls an image, as pixels; and the image files behind paths, folders and globs.

Files are decoded by Pillow: it reports truncated files, applies EXIF orientation, and reads a file's size before
decoding it, so that a decompression bomb is refused.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.errors import ImageError, OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike = Union[str, Path, bytes, "Image", NDArray[Any]]
Color = Literal["bgr", "rgb"]

MAX_PIXELS = 89_478_485
"""Largest image that is decoded unless the caller allows more: Pillow's own limit, 256 MiB of RGB."""

LIMIT_HINT = "raise the limit (max_pixels, --max-pixels) if the image is trusted"
_LIMIT_LOCK = Lock()

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
    if color not in ("bgr", "rgb"):
        raise OptionError(f"color is {color!r}, expected 'bgr' or 'rgb'")
    if isinstance(image, np.ndarray):
        return _from_array(image, color)
    if isinstance(image, (str, Path)):
        return _from_file(Path(image), max_pixels)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(image), "the encoded image", max_pixels)
    if hasattr(image, "convert") and hasattr(image, "getexif"):
        with _readable("the PIL image"):
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
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ImageError(f"can't open {path}: {getattr(error, 'strerror', None) or error}") from error


def _decode(file: Any, name: str, max_pixels: int) -> Frame:
    from PIL import Image

    with _readable(name), _pillow_limit(max_pixels), Image.open(file) as image:
        return Frame(_pil_to_rgb(image, name, max_pixels), rgb=True)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises for a bad image into an `ImageError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image in a known format, or it is empty") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels; {LIMIT_HINT}") from error
    except Exception as error:  # decoders raise what their parsing code happens to raise, struct.error among it
        raise ImageError(f"{name} is damaged or incomplete: {error}") from error


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow open what the caller allows beyond Pillow's own limit; the size is checked before decoding."""
    from PIL import Image

    if max_pixels <= MAX_PIXELS:
        yield
        return
    with _LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _pil_to_rgb(image: Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    from PIL import ImageOps

    width, height = image.size
    if width * height == 0:
        raise ImageError(f"{name} has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"{name} is {width}x{height}, more than the {max_pixels} pixels allowed; {LIMIT_HINT}")
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")  # 16 bits per pixel
    if image.mode in ("I", "F") and not deep:
        raise ImageError(f"{name} has 32 bits per pixel (mode {image.mode}), expected 8 or 16 bits per channel")
    with suppress(Exception):  # damaged EXIF; a damaged image itself is noticed below
        image = ImageOps.exif_transpose(image)
    if deep:
        gray = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def find_images(sources: Iterable[str | Path], *, skip: Path | None = None) -> list[Path]:
    """Return the image files behind paths, folders (searched recursively) and glob patterns, sorted per source.

    A path that names a file is kept whatever its suffix is. Files inside the folder `skip` are not found by searching
    folders. Raises `ImageError` for a source without any image.
    """
    found: list[Path] = []
    for source in sources:
        try:
            images, reason = _find(Path(source), skip)
        except (OSError, ValueError) as error:
            raise ImageError(f"can't open {source}: {getattr(error, 'strerror', None) or error}") from error
        if not images:
            raise ImageError(f"{source} {reason}; known suffixes are {', '.join(sorted(SUFFIXES))}")
        found += images
    return list(dict.fromkeys(found))


def _find(path: Path, skip: Path | None) -> tuple[list[Path], str]:
    """Return the images behind one source, and what to say where there are none."""
    if path.is_dir():
        next(path.iterdir(), None)  # rglob passes over folders that can't be read
        skipped = skip.resolve() if skip is not None and skip.resolve() != path.resolve() else None
        files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        return sorted(file for file in files if skipped not in file.resolve().parents), "holds no image"
    if path.exists():
        return [path], ""
    matches = (Path(match) for match in glob.glob(str(path), recursive=True))
    return sorted(match for match in matches if match.is_file()), "does not exist"
