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
"""What deformable attention reads at a sampling point: a mix of the four nearest cells of the map, or the nearest cell.

The weights were trained for one of them. How an exported graph computes it is a choice of its own: see the `SAMPLERS`
of `layers.deformable_attention`.
"""

HEADS = 8
"""Attention heads, in the encoder and in the decoder."""
DECODER_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class ResNetVdConfig:
    """Blocks of the four stages; `bottleneck` is False for the basic blocks of ResNet-18 and -34."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of S3, S4, S5."""
        return (512, 1024, 2048) if self.bottleneck else (128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class HgStageConfig:
    """One HGNetv2 stage: `blocks` whose convolutions are `mid` channels wide and which return `out` channels.

    `light` convolutions are a 1x1 and a depthwise one of size `kernel`; otherwise one of size `kernel`.
    """

    mid: int
    out: int
    blocks: int
    light: bool
    kernel: int


@dataclass(frozen=True, kw_only=True)
class HgNetV2Config:
    """Channels inside the stem and after it, and the four stages."""

    stem_mid: int
    stem_out: int
    stages: tuple[HgStageConfig, HgStageConfig, HgStageConfig, HgStageConfig]

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of S3, S4, S5."""
        return (self.stages[1].out, self.stages[2].out, self.stages[3].out)


@dataclass(frozen=True, kw_only=True)
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


_RESNET18 = ResNetVdConfig(blocks=(2, 2, 2, 2), bottleneck=False)
_RESNET34 = ResNetVdConfig(blocks=(3, 4, 6, 3), bottleneck=False)
_RESNET50 = ResNetVdConfig(blocks=(3, 4, 6, 3), bottleneck=True)
_RESNET101 = ResNetVdConfig(blocks=(3, 4, 23, 3), bottleneck=True)
_HGNET_L = HgNetV2Config(
    stem_mid=32,
    stem_out=48,
    stages=(
        HgStageConfig(mid=48, out=128, blocks=1, light=False, kernel=3),
        HgStageConfig(mid=96, out=512, blocks=1, light=False, kernel=3),
        HgStageConfig(mid=192, out=1024, blocks=3, light=True, kernel=5),
        HgStageConfig(mid=384, out=2048, blocks=1, light=True, kernel=5),
    ),
)
_HGNET_X = HgNetV2Config(
    stem_mid=32,
    stem_out=64,
    stages=(
        HgStageConfig(mid=64, out=128, blocks=1, light=False, kernel=3),
        HgStageConfig(mid=128, out=512, blocks=2, light=False, kernel=3),
        HgStageConfig(mid=256, out=1024, blocks=5, light=True, kernel=5),
        HgStageConfig(mid=512, out=2048, blocks=2, light=True, kernel=5),
    ),
)
_HGNET_H = HgNetV2Config(
    stem_mid=48,
    stem_out=96,
    stages=(
        HgStageConfig(mid=96, out=192, blocks=2, light=False, kernel=3),
        HgStageConfig(mid=192, out=512, blocks=3, light=False, kernel=3),
        HgStageConfig(mid=384, out=1024, blocks=6, light=True, kernel=5),
        HgStageConfig(mid=768, out=2048, blocks=3, light=True, kernel=5),
    ),
)

_TABLE = (
    Variant(name="r18",       backbone=_RESNET18,  width=256, feedforward=1024, expansion=0.5, max_layers=3, layers=3),
    Variant(name="r34",       backbone=_RESNET34,  width=256, feedforward=1024, expansion=0.5, max_layers=4, layers=4),
    Variant(name="r50-m",     backbone=_RESNET50,  width=256, feedforward=1024, expansion=0.5, max_layers=6, layers=3),
    Variant(name="r50",       backbone=_RESNET50,  width=256, feedforward=1024, expansion=1.0, max_layers=6, layers=6),
    Variant(name="r101",      backbone=_RESNET101, width=384, feedforward=2048, expansion=1.0, max_layers=6, layers=6),
    Variant(name="hgnetv2-l", backbone=_HGNET_L,   width=256, feedforward=1024, expansion=1.0, max_layers=6, layers=6),
    Variant(name="hgnetv2-x", backbone=_HGNET_X,   width=384, feedforward=2048, expansion=1.0, max_layers=6, layers=6),
    Variant(name="hgnetv2-h", backbone=_HGNET_H,   width=512, feedforward=2048, expansion=1.0, max_layers=6, layers=6,
            aifi_layers=2),
)  # fmt: skip
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
        raise OptionError(f"`variant` is {name!r}, expected one of {', '.join(VARIANTS)}, each also with -dsp")
    return replace(base, name=name, sampling="discrete") if name.endswith(DISCRETE_SUFFIX) else base
