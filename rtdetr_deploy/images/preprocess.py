"""Images to the model's input.

    input    uint8 (h, w, 3) each, of any size
    output   (B, 3, H, W) float32 RGB in [0, 1], or (B, H, W, 3) uint8 RGB where scaling is in the graph

Plain resize without letterbox, no mean or standard deviation: what RT-DETR is trained with. Two resizers here:

- `opencv` (default): `cv2.resize(..., INTER_LINEAR)`, the fastest; it samples four neighbours, so strong
  down-scaling aliases a little.
- `pillow`: `Image.resize(..., BILINEAR)`, whose support grows with the scale; the released training code uses it.

A third, `cuda`, is part of the engines' runtime: what `opencv` gives (to one of 255 levels), made on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.images.frame import Frame

Resizer = Literal["opencv", "pillow", "cuda"]
SCALE = np.float32(1.0 / 255.0)
RESIZERS: tuple[Resizer, ...] = ("opencv", "pillow", "cuda")


def prepare_batch(
    frames: Sequence[Frame], height: int, width: int, *, resizer: Resizer = "opencv", raw: bool = False
) -> NDArray[Any]:
    """Return `frames` resized to `height` x `width` as one contiguous array (layouts above; uint8 where `raw`).

    Raises `OptionError` for the resizer "cuda", which only engines have.
    """
    if resizer == "cuda":
        raise OptionError('resizer="cuda" works on the GPU, as a part of engines; choose opencv or pillow here')
    shape = (len(frames), height, width, 3) if raw else (len(frames), 3, height, width)
    batch: NDArray[Any] = np.empty(shape, np.uint8 if raw else np.float32)
    for slot, frame in zip(batch, frames, strict=True):
        pixels = _resize(frame, height, width, resizer)
        if raw:
            slot[:] = pixels if frame.rgb else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        else:
            # Faster than cv2.dnn.blobFromImage (0.55 against 2.7 ms for 640x640), which also costs another copy.
            for channel, plane in enumerate(cv2.split(pixels)):
                np.multiply(plane, SCALE, out=slot[channel if frame.rgb else 2 - channel])
    return batch


def _resize(frame: Frame, height: int, width: int, resizer: Resizer) -> NDArray[np.uint8]:
    pixels = frame.pixels
    if pixels.shape[:2] == (height, width):
        return pixels
    if resizer == "pillow":
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    resized: NDArray[np.uint8] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return resized
