"""ResNet-vd backbone (18, 34 with basic blocks; 50, 101 with bottlenecks).

    input    (B, 3, H, W)             RGB in [0, 1]
    output   3 maps (B, C_l, H/s, W/s)   s = 8, 16, 32   C_l = 128, 256, 512 or 512, 1024, 2048

"vd": three 3x3 convolutions as stem, stride on the 3x3 of a bottleneck, and a 2x2 average pool before the 1x1
of a strided shortcut (arXiv 1812.01187, model D). Parameter names follow the released checkpoints (strict=True).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from rtdetr_deploy.model.layers.conv_norm import ConvNorm
from rtdetr_deploy.model.variants import ResNetVdConfig


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if stride == 1:
        return ConvNorm(channels_in, channels_out, 1)
    pool = nn.AvgPool2d(2, 2, 0, ceil_mode=True)
    return nn.Sequential(OrderedDict(pool=pool, conv=ConvNorm(channels_in, channels_out, 1)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; only the first block of a stage projects its shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.short = _shortcut(channels_in, width, stride) if project else nn.Identity()
        self.branch2a = ConvNorm(channels_in, width, 3, stride, nn.ReLU())
        self.branch2b = ConvNorm(width, width, 3)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, h, w)` -> `(B, width, h/s, w/s)`, s = stride."""
        return self.act(self.branch2b(self.branch2a(x)) + self.short(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 to four times the width, around a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.short = _shortcut(channels_in, width * 4, stride) if project else nn.Identity()
        self.branch2a = ConvNorm(channels_in, width, 1, 1, nn.ReLU())
        self.branch2b = ConvNorm(width, width, 3, stride, nn.ReLU())
        self.branch2c = ConvNorm(width, width * 4, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, h, w)` -> `(B, 4 width, h/s, w/s)`, s = stride."""
        return self.act(self.branch2c(self.branch2b(self.branch2a(x))) + self.short(x))


class Stage(nn.Module):
    """`count` blocks; the first may halve the resolution."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], channels_in: int, width: int, count: int, stride: int
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            block(channels_in, width, stride, project=True),
            *(block(width * block.expansion, width, 1, project=False) for _ in range(count - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, h, w)` -> `(B, width * block.expansion, h/s, w/s)`, s = stride."""
        return self.blocks(x)


class ResNetVdBackbone(nn.Module):
    """Stem and four stages; returns the maps of the last three."""

    def __init__(self, config: ResNetVdConfig) -> None:
        super().__init__()
        block = Bottleneck if config.bottleneck else BasicBlock
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv1_1=ConvNorm(3, 32, 3, 2, nn.ReLU()),
                conv1_2=ConvNorm(32, 32, 3, 1, nn.ReLU()),
                conv1_3=ConvNorm(32, 64, 3, 1, nn.ReLU()),
            )
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], 64
        for index, count in enumerate(config.blocks):
            width = 64 * 2**index
            stages.append(Stage(block, channels, width, count, stride=1 if index == 0 else 2))
            channels = width * block.expansion
        self.res_layers = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)` -> three maps `(B, C_l, H/s, W/s)`, s = 8, 16, 32."""
        x = self.pool(self.conv1(images))
        maps = []
        for stage in self.res_layers:
            x = stage(x)
            maps.append(x)
        return maps[1:]
