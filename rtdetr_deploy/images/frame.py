"""Whatever a user calls an image, as pixels.

Files are decoded by Pillow: it reports truncated files, applies EXIF orientation, and reads a file's size before
decoding it, so that a decompression bomb is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Union, cast

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.errors import ImageError, OptionError
from rtdetr_deploy.files import reason, refuse_named_pipe
from rtdetr_deploy.images.decode import Enough, mention_frames, reduce_jpeg, to_pixels
from rtdetr_deploy.images.gpu_array import (
    GpuArray,
    HasCudaInterface,
    HasDlpack,
    as_host_array,
    is_on_gpu,
    is_third_party_array,
    refuse_gpu_array,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from rtdetr_deploy.images.gpu_frame import GpuFrame

ImageLike = Union[str, Path, bytes, "Image", NDArray[Any], "Frame", "GpuFrame", GpuArray, HasDlpack, HasCudaInterface]
Color = Literal["bgr", "rgb"]

MAX_PIXELS = 89_478_485
"""Largest image that is decoded unless the caller allows more: Pillow's own limit, 256 MiB of RGB."""

LIMIT_HINT = "raise `max_pixels` if the image is trusted"
_LIMIT_LOCK = Lock()


@dataclass(frozen=True)
class Frame:
    """Pixels `(h, w, 3)` uint8, and whether their channels are RGB (else BGR).

    Each pixel stands for `reduction` x `reduction` of the picture's: 1, or 2, 4 or 8 where a JPEG was decoded small
    for a model.
    """

    pixels: NDArray[np.uint8]
    rgb: bool
    reduction: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels, in which boxes are given."""
        return self.pixels.shape[0] * self.reduction, self.pixels.shape[1] * self.reduction

    def to_rgb(self) -> NDArray[np.uint8]:
        """Return the pixels as a contiguous RGB array."""
        return np.ascontiguousarray(self.pixels if self.rgb else self.pixels[:, :, ::-1])


def load_frame(
    image: ImageLike, *, color: Color = "bgr", max_pixels: int = MAX_PIXELS, enough: Enough | None = None
) -> Frame:
    """Return the pixels of a path, encoded bytes, PIL image or array; a `Frame` is returned as it is.

    Arrays are uint8 or uint16 (full range; the low byte is dropped), of shape (h, w), (h, w, 1), (h, w, 3) or
    (h, w, 4); channels are in the order `color`, alpha is dropped. `color` concerns arrays alone. Arrays of other
    libraries are taken by DLPack where they lie in the CPU's memory. Files are
    turned as their EXIF orientation says; a PIL image is too. Of an animation or a file of several pages the first
    is used, which a warning says once. `enough` returns the smallest (height, width) that will do for a picture of one:
    JPEG files are then decoded at 1/2, 1/4 or 1/8 where that suffices (see `Frame.reduction`).

    Raises `ImageError` when the image can't be read, is empty, has more than `max_pixels` pixels, or another dtype.
    """
    check_color(color)
    check_max_pixels(max_pixels)
    if isinstance(image, Frame):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image, color)
    if is_third_party_array(image):
        if is_on_gpu(image):
            raise refuse_gpu_array("the image", "load_frame")
        return _from_array(as_host_array(image, "the image"), color)
    if isinstance(image, (str, Path)):
        return _from_file(Path(image), max_pixels, enough)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(image), "the encoded image", max_pixels, enough)
    if hasattr(image, "convert") and hasattr(image, "getexif"):
        with _readable("the PIL image"):
            picture = cast("Image", image)
            frame = Frame(to_pixels(picture, deep=_check(picture, "the PIL image", max_pixels), own=False), rgb=True)
            mention_frames(picture)
            return frame
    raise ImageError(f"can't read an image from {type(image).__name__}; pass a path, bytes, PIL image or numpy array")


def check_color(color: Color) -> None:
    """Raise `OptionError` unless `color` is an order of channels."""
    if color not in ("bgr", "rgb"):
        raise OptionError(f"`color` is {color!r}, expected 'bgr' or 'rgb'")


def check_max_pixels(max_pixels: int) -> int:
    """Return `max_pixels`; `OptionError` unless it is a whole number from 1."""
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, (int, np.integer)) or max_pixels < 1:
        raise OptionError(f"`max_pixels` is {max_pixels!r}, expected a whole number from 1")
    return int(max_pixels)


def _from_array(image: NDArray[Any], color: Color) -> Frame:
    if isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise ImageError("image array is masked, and masks are not used here; pass image.filled(0)")
    array = np.asarray(image)  # a subclass such as numpy.matrix has shapes of its own
    if array.dtype not in (np.uint8, np.uint16, np.dtype(">u2")):
        raise ImageError(f"image array is {array.dtype}, expected uint8 or uint16; {_advice(array)}")
    if array.ndim == 2:
        array = array[:, :, None]
    check_image_shape(array.shape)
    if array.dtype != np.uint8:
        array = (array >> 8).astype(np.uint8)
    array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
    return Frame(np.ascontiguousarray(array), rgb=color == "rgb")


def check_image_shape(shape: tuple[int, ...]) -> None:
    """Raise `ImageError` unless `shape` is (height, width, 1, 3 or 4 channels), with pixels."""
    if len(shape) != 3 or shape[2] not in (1, 3, 4):
        raise ImageError(
            f"image array has shape {shape}, expected (height, width) or (height, width, 1, 3 or 4 channels); "
            "for several images call detect_batch"
        )
    if 0 in shape:
        raise ImageError(f"image array of shape {shape} has no pixels")


def _advice(array: NDArray[Any]) -> str:
    """Say how to make uint8 of an array of another type."""
    advice = f"for values from 0 to 255 pass image{'.round()' * (array.dtype.kind == 'f')}.astype('uint8')"
    if array.dtype == np.bool_:
        advice = "for a mask pass image.astype('uint8') * 255"
    elif array.dtype.kind in "iuf" and array.size:
        low, high = array.min(), array.max()
        if not np.isfinite([low, high]).all():
            advice = "it holds NaN or infinity"
        elif low < 0:
            advice = f"its values begin at {low:g}; undo the normalization first"
        elif array.dtype.kind == "f" and high <= 1:
            advice = "for values from 0 to 1 pass (image * 255).round().astype('uint8')"
        elif high > 255:
            advice = f"its values go up to {high:g}; scale them to 0 .. 255 and pass image.astype('uint8')"
    return advice


def _from_file(path: Path, max_pixels: int, enough: Enough | None) -> Frame:
    try:
        refuse_named_pipe(path, ImageError)
        with path.open("rb") as file:
            content = file if file.seekable() else io.BytesIO(file.read())
            return _decode(content, str(path), max_pixels, enough)
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder; use rtdetr_deploy.find_images to list the images in it") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ImageError(f"can't open {path}: {reason(error)}") from error


def _decode(file: Any, name: str, max_pixels: int, enough: Enough | None) -> Frame:
    from PIL import Image

    with _readable(name), _pillow_limit(max_pixels), Image.open(file) as image:
        deep = _check(image, name, max_pixels)
        reduction = reduce_jpeg(image, enough) if enough is not None else 1
        frame = Frame(to_pixels(image, deep=deep, own=True), rgb=True, reduction=reduction)
        mention_frames(image)
        return frame


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises for a bad image into an `ImageError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name} is too large for the memory that is free") from error
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


def _check(image: Image, name: str, max_pixels: int) -> bool:
    """Tell whether an opened picture has 16 bits per pixel. Raises `ImageError` for one that is not usable."""
    width, height = image.size
    if width * height == 0:
        raise ImageError(f"{name} has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ImageError(f"{name} is {width}x{height}, more than the {max_pixels} pixels allowed; {LIMIT_HINT}")
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")  # 16 bits per pixel
    if image.mode in ("I", "F") and not deep:
        raise ImageError(f"{name} has 32 bits per pixel (mode {image.mode}), expected 8 or 16 bits per channel")
    return deep
