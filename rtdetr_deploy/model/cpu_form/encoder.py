"""The hybrid encoder with less arithmetic: what is coarse is projected before it is upsampled.

    input    3 maps  (B, C_l, H/s, W/s)   s = 8, 16, 32   C_l = backbone channels
    output   3 maps  (B, D,   H/s, W/s)   same strides    D   = variant.width

A 1x1 convolution of [upsampled, lateral] is the sum of one of either part, and repeating cells commutes with it:
W [up(a), b] = up(W_a a) + W_b b. So W_a runs on a quarter of the cells, and nothing is concatenated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.model.cpu_form.pointwise import convolution_of, join, pointwise
from rtdetr_deploy.model.hybrid_encoder import FusionBlock, HybridEncoder


class SplitProjection(nn.Module):
    """`act(W [up(coarse), fine] + b)` as one convolution of either map."""

    def __init__(self, folded: nn.Module, lateral: nn.Conv2d | None) -> None:
        super().__init__()
        assert isinstance(folded, nn.Sequential)
        conv, activation = folded
        assert isinstance(conv, nn.Conv2d)
        weight, half = conv.weight[:, :, 0, 0], conv.in_channels // 2
        assert conv.bias is not None
        self.coarse = pointwise(weight[:, :half], None)
        fine = weight[:, half:]
        self.fine = pointwise(fine, conv.bias) if lateral is None else join(lateral, fine, conv.bias)
        self.act = activation

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """`coarse` (B, D, h, w) and `fine` (B, C, 2h, 2w) -> (B, C_out, 2h, 2w)."""
        upsampled = functional.interpolate(self.coarse(coarse), scale_factor=2.0, mode="nearest")
        return self.act(self.fine(fine) + upsampled)


class UpsamplingFusion(nn.Module):
    """A `FusionBlock` of an upsampled map and a lateral one; the lateral's own projection may be part of it."""

    def __init__(self, block: nn.Module, lateral: nn.Conv2d | None) -> None:
        super().__init__()
        assert isinstance(block, FusionBlock)
        self.conv1 = SplitProjection(block.conv1, lateral)
        self.conv2 = SplitProjection(block.conv2, lateral)
        self.bottlenecks = block.bottlenecks
        self.conv3 = block.conv3

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """`coarse` (B, D, h, w) and `fine` (B, C, 2h, 2w) -> (B, D, 2h, 2w)."""
        return self.conv3(self.bottlenecks(self.conv1(coarse, fine)) + self.conv2(coarse, fine))


class CpuEncoder(HybridEncoder):
    """A folded `HybridEncoder`, whose modules it takes over under their names."""

    def __init__(self, encoder: HybridEncoder) -> None:
        nn.Module.__init__(self)
        s3, s4, s5 = encoder.input_proj
        top, bottom = encoder.fpn_blocks
        laterals = [_lateral(block, project) for block, project in ((top, s4), (bottom, s3))]
        rest = [nn.Identity() if lateral is not None else s for lateral, s in zip(laterals, (s4, s3), strict=True)]
        self.input_proj = nn.ModuleList([rest[1], rest[0], s5])
        self.encoder = encoder.encoder
        self.lateral_convs = encoder.lateral_convs
        self.fpn_blocks = nn.ModuleList(
            UpsamplingFusion(block, lateral) for block, lateral in zip((top, bottom), laterals, strict=True)
        )
        self.downsample_convs = encoder.downsample_convs
        self.pan_blocks = encoder.pan_blocks

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Three maps `(B, C_l, H/s, W/s)`, s = 8, 16, 32 -> three maps `(B, D, H/s, W/s)`."""
        s3, s4, s5 = (project(x) for project, x in zip(self.input_proj, maps, strict=True))
        f5 = self.lateral_convs[0](self.encoder[0](s5))
        f4 = self.lateral_convs[1](self.fpn_blocks[0](f5, s4))
        p3 = self.fpn_blocks[1](f4, s3)
        p4 = self.pan_blocks[0](torch.cat((self.downsample_convs[0](p3), f4), dim=1))
        p5 = self.pan_blocks[1](torch.cat((self.downsample_convs[1](p4), f5), dim=1))
        return [p3, p4, p5]


def _lateral(block: nn.Module, project: nn.Module) -> nn.Conv2d | None:
    """Return the projection of a lateral map if the two convolutions that read it take it in with fewer products."""
    assert isinstance(block, FusionBlock)
    conv = convolution_of(project)
    hidden = convolution_of(block.conv1).out_channels
    apart = conv.in_channels * conv.out_channels + conv.out_channels * 2 * hidden
    return conv if conv.in_channels * 2 * hidden < apart else None
