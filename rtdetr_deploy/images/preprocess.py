"""Images to the model's input, as its `PreprocessSpec` says, on the CPU.

    input    uint8 (h, w, 3) each, of any size
    output   (B, 3, H, W) float, or (B, H, W, 3) uint8

Two libraries resize:

- `opencv` (default): `cv2.resize`, the fastest; it samples neighbours, so strong down-scaling aliases a little.
- `pillow`: `Image.resize`, whose support grows with the scale; the released training code uses it.

Runtimes may offer more, such as `cuda` of engines: what `opencv` gives (to one of 255 levels), made on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.images.buffers import Buffers
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.gpu_array import refuse_gpu_array
from rtdetr_deploy.images.gpu_frame import AnyFrame, GpuFrame
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec

Resizer = Literal["opencv", "pillow", "cuda"]
HOST_RESIZERS: tuple[Resizer, ...] = ("opencv", "pillow")
RESIZERS: tuple[Resizer, ...] = (*HOST_RESIZERS, "cuda")

_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class HostPreprocessor:
    """The CPU's `Preprocessor` (see `runtimes.protocol`): what `spec` says, resized by the library `resizer`.

    It may be called from several threads at once. The memory of inputs that nobody refers to any more is used again.

    Raises `OptionError` for a resizer that works elsewhere.
    """

    def __init__(self, spec: PreprocessSpec, resizer: Resizer = "opencv") -> None:
        if resizer not in HOST_RESIZERS:
            raise OptionError(f'`resizer="{resizer}"` does not work on the CPU; choose {" or ".join(HOST_RESIZERS)}')
        self._spec, self._resizer, self._buffers = spec, resizer, Buffers()
        std = np.array(spec.std)
        self._factors = (spec.scale / std).astype(np.float32)
        self._offsets = (np.array(spec.mean) / std).astype(np.float32)

    def __call__(self, frames: Sequence[AnyFrame], rows: int) -> NDArray[Any]:
        """Return an input of `rows` images, zero in those behind `frames`; it is contiguous, and the caller's."""
        spec = self._spec
        size = (*spec.size, 3) if spec.layout == "nhwc" else (3, *spec.size)
        batch = self._buffers.empty((rows, *size), np.uint8 if spec.dtype == "uint8" else np.float32)
        batch[len(frames) :] = 0
        write = self._write_bytes if spec.layout == "nhwc" else self._write_planes
        for slot, frame in zip(batch, frames, strict=False):
            if isinstance(frame, GpuFrame):
                raise refuse_gpu_array("the image", f'`resizer="{self._resizer}"`')
            write(slot, frame, frame.rgb != (spec.color == "rgb"))
        return batch.astype(spec.dtype, copy=False)

    def _write_bytes(self, slot: NDArray[Any], frame: Frame, swap: bool) -> None:
        if swap:
            cv2.cvtColor(self._fit(frame), cv2.COLOR_BGR2RGB, dst=slot)
        elif (fitted := self._fit(frame, slot)) is not slot:
            slot[:] = fitted

    def _write_planes(self, slot: NDArray[Any], frame: Frame, swap: bool) -> None:
        # Faster than cv2.dnn.blobFromImage (0.55 against 2.7 ms for 640x640), which also costs another copy.
        planes = self._buffers.empty((3, *self._spec.size), np.uint8)
        cv2.split(self._fit(frame), list(planes))
        for channel, plane in enumerate(planes):
            channel = 2 - channel if swap else channel
            np.multiply(plane, self._factors[channel], out=slot[channel])
            if self._offsets[channel]:
                slot[channel] -= self._offsets[channel]

    def _fit(self, frame: Frame, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return the frame's pixels at the input's size, in the frame's own channel order; in `into` where possible."""
        height, width = self._spec.size
        if not self._spec.letterbox:
            return self._resize(frame.pixels, height, width, into)
        left, top, wide, tall = self._spec.window(frame.size)
        canvas = self._buffers.empty((height, width, 3), np.uint8) if into is None else into
        canvas[:] = self._spec.pad
        canvas[top : top + tall, left : left + wide] = self._resize(frame.pixels, tall, wide)
        return canvas

    def _resize(
        self, pixels: NDArray[np.uint8], height: int, width: int, into: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        if pixels.shape[:2] == (height, width):
            return pixels
        if self._resizer == "pillow":
            from PIL import Image

            image = Image.fromarray(np.ascontiguousarray(pixels))
            return np.asarray(image.resize((width, height), Image.Resampling[self._spec.filter.upper()]))
        resized = self._buffers.empty((height, width, 3), np.uint8) if into is None else into
        cv2.resize(pixels, (width, height), dst=resized, interpolation=_OPENCV[self._spec.filter])
        return resized


def to_image(boxes: NDArray[np.float32], spec: PreprocessSpec, image: tuple[int, int]) -> NDArray[np.float32]:
    """Return xyxy boxes `(N, 4)` in [0, 1] of the input as pixels of an image of this (height, width), inside it."""
    (height, width), (rows, columns) = spec.size, image
    left, top, wide, tall = spec.window(image)
    shift = np.array((left / width, top / height) * 2, np.float32)
    pixels = np.array((columns * width / wide, rows * height / tall) * 2, np.float32)
    inside: NDArray[np.float32] = np.clip((boxes - shift) * pixels, 0.0, np.array((columns, rows) * 2, np.float32))
    return inside.astype(np.float32, copy=False)


def prepare_batch(
    frames: Sequence[Frame], height: int, width: int, *, resizer: Resizer = "opencv", raw: bool = False
) -> NDArray[Any]:
    """Return `frames` as RT-DETR wants them, float32 or uint8 (`raw`), a row each; raises as `HostPreprocessor`."""
    spec = PreprocessSpec.rtdetr((height, width), "uint8" if raw else "float32")
    return HostPreprocessor(spec, resizer)(frames, len(frames))
