"""Every released RT-DETR and RT-DETRv2 model as data.

Sources: arXiv 2304.08069 (table 2 and appendix), arXiv 2407.17140, and the parameter lists of the released
checkpoints. RT-DETR and RT-DETRv2 compute the same function; they differ in parameter names (see
`checkpoints`), in the number of sampling points per level, and in discrete sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rtdetr_deploy.errors import OptionError

Sampling = Literal["bilinear", "discrete"]

STRIDES = (8, 16, 32)
HEADS = 8
DECODER_WIDTH = 256


@dataclass(frozen=True)
class ResNetVdConfig:
    """Blocks per stage; `bottleneck` is False for the basic blocks of ResNet-18 and -34."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of S3, S4, S5."""
        return (512, 1024, 2048) if self.bottleneck else (128, 256, 512)


@dataclass(frozen=True)
class HgStageConfig:
    """One HGNetv2 stage: width inside a block, width of its output, blocks, light convolutions, kernel size."""

    middle: int
    output: int
    blocks: int
    light: bool
    kernel: int


@dataclass(frozen=True)
class HgNetV2Config:
    """Stem widths (middle, output) and the four stages."""

    stem: tuple[int, int]
    stages: tuple[HgStageConfig, HgStageConfig, HgStageConfig, HgStageConfig]

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of S3, S4, S5."""
        return (self.stages[1].output, self.stages[2].output, self.stages[3].output)


@dataclass(frozen=True)
class Variant:
    """A complete description of one model.

    `width` and `feedforward` belong to the hybrid encoder (the decoder is 256 wide with a feed-forward of 1024
    everywhere), `expansion` to its fusion blocks, `aifi_layers` to the attention on its coarsest level. `max_layers`
    decoder layers have weights, `layers` of them run by default. `points` are the sampling points on each of the three
    levels.
    """

    name: str
    backbone: ResNetVdConfig | HgNetV2Config
    width: int
    feedforward: int
    expansion: float
    max_layers: int
    layers: int
    points: tuple[int, int, int] = (4, 4, 4)
    sampling: Sampling = "bilinear"
    classes: int = 80
    queries: int = 300
    aifi_layers: int = 1


_RESNET18 = ResNetVdConfig((2, 2, 2, 2), bottleneck=False)
_RESNET34 = ResNetVdConfig((3, 4, 6, 3), bottleneck=False)
_RESNET50 = ResNetVdConfig((3, 4, 6, 3), bottleneck=True)
_RESNET101 = ResNetVdConfig((3, 4, 23, 3), bottleneck=True)


def _hgnet(stem: tuple[int, int], *stages: tuple[int, int, int, bool, int]) -> HgNetV2Config:
    first, second, third, fourth = (HgStageConfig(*stage) for stage in stages)
    return HgNetV2Config(stem, (first, second, third, fourth))


_HGNET_L = _hgnet(
    (32, 48), (48, 128, 1, False, 3), (96, 512, 1, False, 3), (192, 1024, 3, True, 5), (384, 2048, 1, True, 5)
)
_HGNET_X = _hgnet(
    (32, 64), (64, 128, 1, False, 3), (128, 512, 2, False, 3), (256, 1024, 5, True, 5), (512, 2048, 2, True, 5)
)
_HGNET_H = _hgnet(
    (48, 96), (96, 192, 2, False, 3), (192, 512, 3, False, 3), (384, 1024, 6, True, 5), (768, 2048, 3, True, 5)
)

#                      name         backbone   width ffn  expansion built layers
_TABLE = (
    Variant("r18", _RESNET18, 256, 1024, 0.5, 3, 3),
    Variant("r34", _RESNET34, 256, 1024, 0.5, 4, 4),
    Variant("r50-m", _RESNET50, 256, 1024, 0.5, 6, 3),
    Variant("r50", _RESNET50, 256, 1024, 1.0, 6, 6),
    Variant("r101", _RESNET101, 384, 2048, 1.0, 6, 6),
    Variant("hgnetv2-l", _HGNET_L, 256, 1024, 1.0, 6, 6),
    Variant("hgnetv2-x", _HGNET_X, 384, 2048, 1.0, 6, 6),
    Variant("hgnetv2-h", _HGNET_H, 512, 2048, 1.0, 6, 6, aifi_layers=2),
)
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _TABLE}

DISCRETE_SUFFIX = "-dsp"


def variant_names() -> tuple[str, ...]:
    """Every name that `find_variant` accepts."""
    return (*VARIANTS, *(name + DISCRETE_SUFFIX for name in VARIANTS))


def find_variant(name: str) -> Variant:
    """Return the variant called `name`; `-dsp` at the end asks for discrete sampling (RT-DETRv2).

    Raises `OptionError` for an unknown name.
    """
    base = VARIANTS.get(name.removesuffix(DISCRETE_SUFFIX))
    if base is None:
        raise OptionError(f"unknown variant {name!r}; choose from {', '.join(VARIANTS)}, each also with -dsp")
    return replace(base, name=name, sampling="discrete") if name.endswith(DISCRETE_SUFFIX) else base
