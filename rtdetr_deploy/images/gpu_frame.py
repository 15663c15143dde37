"""Pixels that lie on a GPU: what a `Frame` is, without the CPU."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_deploy.errors import ImageError
from rtdetr_deploy.images.frame import Color, Frame, check_color, check_image_shape
from rtdetr_deploy.images.gpu_array import GpuArray


@dataclass(frozen=True)
class GpuFrame:
    """Pixels `(h, w)` or `(h, w, 1 | 3 | 4)`, uint8 or uint16, of any strides, and whether they are RGB (else BGR)."""

    array: GpuArray
    rgb: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.array.shape[0], self.array.shape[1]


AnyFrame = Frame | GpuFrame


def as_gpu_frame(array: GpuArray, color: Color) -> GpuFrame:
    """Return an array on a GPU as pixels; the rules are those of `load_frame` for arrays. Raises `ImageError`."""
    check_color(color)
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(
            f"image array is {array.dtype}, expected uint8 or uint16; scale it to 0 .. 255 and convert it on the GPU"
        )
    check_image_shape((*array.shape, 1) if len(array.shape) == 2 else array.shape)
    return GpuFrame(array, rgb=color == "rgb")


def channel_strides(frame: GpuFrame) -> tuple[int, int, int]:
    """Return the bytes from one row, one pixel and one channel to the next; 0 between channels of gray pixels."""
    row, pixel, *channel = frame.array.strides
    gray = frame.array.shape[2:] in ((), (1,))
    return row, pixel, 0 if gray else channel[0]


def high_byte_address(frame: GpuFrame) -> int:
    """Return where the frame's bytes begin; of 16 bits the low byte is dropped, so where the high ones begin."""
    dtype = frame.array.dtype
    little = dtype.itemsize == 2 and dtype.newbyteorder("<") == dtype
    return frame.array.address + int(little)
