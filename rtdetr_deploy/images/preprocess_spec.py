"""What a model wants of its images, as data: stored with the file, honoured by whatever prepares them.

resized to `size`, stretched, or with `letterbox` at its own aspect ratio, centred on the grey `pad`
in the channel order `color`
float input  (B, 3, H, W)   (value * scale - mean) / std     mean and std per channel in that order
uint8 input  (B, H, W, 3)   the values 0 .. 255 themselves; the rest is in the graph
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from rtdetr_deploy.artifacts.fields import find_wrong_field
from rtdetr_deploy.errors import OptionError

Filter = Literal["bilinear", "bicubic"]
Layout = Literal["nchw", "nhwc"]
Dtype = Literal["float32", "float16", "float64", "uint8"]
Channels = tuple[float, float, float]

TO_UNIT = 1.0 / 255.0
"""Scale of values that go from 0 to 1."""
GREY = 114
"""What the frameworks that letterbox (the YOLOs') fill up with."""


@dataclass(frozen=True)
class PreprocessSpec:
    """How images become the input of size (height, width) in pixels; see the module.

    The defaults are what RT-DETR is trained with. `scale` of a uint8 input is 1. Raises `OptionError` for values
    that don't belong together.
    """

    size: tuple[int, int]
    color: Literal["rgb", "bgr"] = "rgb"
    scale: float = TO_UNIT
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    filter: Filter = "bilinear"
    letterbox: bool = False
    pad: int = GREY
    layout: Layout = "nchw"
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        wrong = find_wrong_field(self)
        if wrong is not None:
            raise OptionError(wrong)
        if min(self.size) < 1:
            raise OptionError(f"`size` is {self.size}, expected (height, width) in pixels")
        numbers = (self.scale, *self.mean, *self.std)
        if not all(map(math.isfinite, numbers)) or self.scale <= 0 or min(self.std) <= 0:
            raise OptionError("`scale`, `mean` and `std` must be finite, and `scale` and `std` larger than 0")
        if not 0 <= self.pad <= 255:
            raise OptionError(f"`pad` is {self.pad}, expected a grey from 0 to 255")
        if (self.layout == "nhwc") != (self.dtype == "uint8"):
            raise OptionError(f"`layout` is {self.layout} and `dtype` {self.dtype}, expected nchw floats or nhwc uint8")
        if self.dtype == "uint8" and (self.scale, self.mean, self.std) != (1.0, (0.0,) * 3, (1.0,) * 3):
            raise OptionError("`scale`, `mean` and `std` of a uint8 input are in the graph; expected 1, 0 and 1")

    @classmethod
    def rtdetr(cls, size: tuple[int, int], dtype: str = "float32") -> PreprocessSpec:
        """Return what RT-DETR wants, for an input of `dtype`; raises `OptionError` for other types than `Dtype`."""
        if dtype == "uint8":
            return cls(size, scale=1.0, layout="nhwc", dtype="uint8")
        return cls(size, dtype=dtype)  # type: ignore[arg-type]  # checked by the class

    @property
    def is_plain(self) -> bool:
        """Whether images are stretched bilinearly and given as RGB in [0, 1] (uint8: 0 to 255), as for RT-DETR."""
        return replace(self, pad=GREY) == PreprocessSpec.rtdetr(self.size, self.dtype)

    def window(self, image: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return left, top, width and height in pixels of the input that an image of this (height, width) covers."""
        height, width = self.size
        if not self.letterbox:
            return 0, 0, width, height
        rows, columns = image
        ratio = min(height / rows, width / columns)
        wide, tall = max(1, round(columns * ratio)), max(1, round(rows * ratio))
        return (width - wide) // 2, (height - tall) // 2, wide, tall
