"""HGNetv2 backbone (L, X, H).

    input    (B, 3, H, W)             RGB in [0, 1]
    output   3 maps (B, C_l, H/s, W/s)   s = 8, 16, 32   C_l = 512, 1024, 2048

Source: the released PaddlePaddle and RT-DETR models (arXiv 2304.08069, appendix).
Parameter names follow the released checkpoints (strict=True).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_deploy.model.variants import HgNetV2Config, HgStageConfig

CONVS_PER_BLOCK = 6


class ConvBn(nn.Module):
    """Convolution, batch normalization, optional ReLU; `pad_end` pads one row below and one column to the right."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
        pad_end: bool = False,
    ) -> None:
        super().__init__()
        padding = 0 if pad_end else (kernel - 1) // 2
        conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)
        self.conv: nn.Module = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv) if pad_end else conv
        self.bn: nn.Module = nn.BatchNorm2d(channels_out)
        self.act = nn.ReLU() if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` -> `(B, C_out, H/s, W/s)`, s = stride."""
        return self.act(self.bn(self.conv(x)))


class LightConvBn(nn.Module):
    """1x1 convolution without activation, then a depthwise one."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = ConvBn(channels_in, channels_out, 1, activate=False)
        self.conv2 = ConvBn(channels_out, channels_out, kernel, groups=channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` -> `(B, C_out, H, W)`."""
        return self.conv2(self.conv1(x))


class Stem(nn.Module):
    """Two strided convolutions with a pooled and a convolved path between them."""

    def __init__(self, mid: int, out: int) -> None:
        super().__init__()
        self.stem1 = ConvBn(3, mid, 3, 2)
        self.stem2a = ConvBn(mid, mid // 2, 2, pad_end=True)
        self.stem2b = ConvBn(mid // 2, mid, 2, pad_end=True)
        self.pool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1))
        self.stem3 = ConvBn(2 * mid, mid, 3, 2)
        self.stem4 = ConvBn(mid, out, 1)

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> `(B, out, H/4, W/4)`."""
        x = self.stem1(images)
        x = torch.cat((self.pool(x), self.stem2b(self.stem2a(x))), dim=1)
        return self.stem4(self.stem3(x))


class HgBlock(nn.Module):
    """Six chained convolutions, all concatenated, squeezed to half the output width and excited to the full one."""

    def __init__(self, channels_in: int, stage: HgStageConfig, residual: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = channels_in
        for _ in range(CONVS_PER_BLOCK):
            conv = LightConvBn if stage.light else ConvBn
            layers.append(conv(channels, stage.mid, stage.kernel))
            channels = stage.mid
        self.layers = nn.ModuleList(layers)
        total = channels_in + CONVS_PER_BLOCK * stage.mid
        self.aggregation_squeeze_conv = ConvBn(total, stage.out // 2, 1)
        self.aggregation_excitation_conv = ConvBn(stage.out // 2, stage.out, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, h, w)` -> `(B, out, h, w)`."""
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        y: Tensor = self.aggregation_excitation_conv(self.aggregation_squeeze_conv(torch.cat(maps, dim=1)))
        return y + x if self.residual else y


class HgStage(nn.Module):
    """Optional depthwise 3x3 with stride 2, then the blocks; every block but the first adds its input."""

    def __init__(self, channels_in: int, stage: HgStageConfig, downsample: bool) -> None:
        super().__init__()
        self.downsample = (
            ConvBn(channels_in, channels_in, 3, 2, groups=channels_in, activate=False) if downsample else nn.Identity()
        )
        self.blocks = nn.Sequential(
            *(
                HgBlock(channels_in if index == 0 else stage.out, stage, residual=index > 0)
                for index in range(stage.blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, h, w)` -> `(B, out, h, w)`, or half as high and wide where the stage downsamples."""
        return self.blocks(self.downsample(x))


class HgNetV2Backbone(nn.Module):
    """Stem and four stages; returns the maps of the last three."""

    def __init__(self, config: HgNetV2Config) -> None:
        super().__init__()
        self.stem = Stem(config.stem_mid, config.stem_out)
        stages, channels = [], config.stem_out
        for index, stage in enumerate(config.stages):
            stages.append(HgStage(channels, stage, downsample=index > 0))
            channels = stage.out
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)` -> three maps `(B, C_l, H/s, W/s)`, s = 8, 16, 32."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]
