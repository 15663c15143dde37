"""Hybrid encoder: attention inside the coarsest level (AIFI), convolution across levels (CCFF).

    input    3 maps  (B, C_l, H/s, W/s)   s = 8, 16, 32   C_l = backbone channels
    output   3 maps  (B, D,   H/s, W/s)   same strides    D   = variant.width

Paper: arXiv 2304.08069, section 4.2. Parameter names follow the released checkpoints (strict=True).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.model.layers.attention import SelfAttention
from rtdetr_deploy.model.layers.conv_norm import ConvNorm
from rtdetr_deploy.model.layers.tokens import flatten_map
from rtdetr_deploy.model.variants import HEADS, Variant

REPVGG_BLOCKS = 3


@lru_cache(maxsize=32)
def position_embedding(height: int, width: int, channels: int) -> NDArray[np.float32]:
    """Return the sine-cosine embedding `(1, height * width, channels)`, float32 in [-1, 1].

    Channels are [sin x, cos x, sin y, cos y] with `channels / 4` frequencies 1 / 10000^(i / (channels / 4)).
    Rows are x-major although the tokens are y-major: the released models were trained that way.
    """
    quarter = channels // 4
    frequency = 1.0 / 10000.0 ** (np.arange(quarter) / quarter)
    x, y = np.meshgrid(np.arange(width), np.arange(height), indexing="ij")
    angle_x = x.reshape(-1, 1) * frequency
    angle_y = y.reshape(-1, 1) * frequency
    table = np.concatenate([np.sin(angle_x), np.cos(angle_x), np.sin(angle_y), np.cos(angle_y)], axis=1)
    return table[None].astype(np.float32)


class AifiLayer(nn.Module):
    """Post-norm transformer layer with GELU. `(B, N, D) -> (B, N, D)`."""

    def __init__(self, width: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, HEADS)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """`tokens` (B, N, D) and `position` (1, N, D) -> (B, N, D)."""
        tokens = self.norm1(tokens + self.self_attn(tokens, position))
        return self.norm2(tokens + self.linear2(functional.gelu(self.linear1(tokens))))


class Aifi(nn.Module):
    """Attention-based intra-scale feature interaction on S5. `(B, D, h, w) -> (B, D, h, w)`."""

    def __init__(self, width: int, feedforward: int, layers: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AifiLayer(width, feedforward) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, D, h, w)` -> `(B, D, h, w)`."""
        channels, height, width = int(x.shape[1]), int(x.shape[2]), int(x.shape[3])
        position = torch.from_numpy(position_embedding(height, width, channels)).to(x)
        tokens = flatten_map(x)
        for layer in self.layers:
            tokens = layer(tokens, position)
        return tokens.transpose(1, 2).reshape(-1, channels, height, width)


class RepVggBlock(nn.Module):
    """SiLU(BN(conv 3x3) + BN(conv 1x1)), no identity branch (arXiv 2101.03697)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, h, w)` -> `(B, C, h, w)`."""
        return self.act(self.conv1(x) + self.conv2(x))


class FusionBlock(nn.Module):
    """CSP block: two 1x1 branches, one through RepVGG blocks, added; a closing 1x1 where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels_out * expansion)
        self.conv1 = ConvNorm(channels_in, hidden, 1, 1, nn.SiLU())
        self.conv2 = ConvNorm(channels_in, hidden, 1, 1, nn.SiLU())
        self.bottlenecks = nn.Sequential(*(RepVggBlock(hidden) for _ in range(REPVGG_BLOCKS)))
        self.conv3 = ConvNorm(hidden, channels_out, 1, 1, nn.SiLU()) if hidden != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, h, w)` -> `(B, C_out, h, w)`."""
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class Ccff(nn.Module):
    """CNN-based cross-scale feature fusion: top-down, then bottom-up; each fusion joins two levels of D channels."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvNorm(width, width, 1, 1, nn.SiLU()) for _ in range(2))
        self.fpn_blocks = nn.ModuleList(FusionBlock(2 * width, width, expansion) for _ in range(2))
        self.downsample_convs = nn.ModuleList(ConvNorm(width, width, 3, 2, nn.SiLU()) for _ in range(2))
        self.pan_blocks = nn.ModuleList(FusionBlock(2 * width, width, expansion) for _ in range(2))

    def fuse_levels(self, s3: Tensor, s4: Tensor, s5: Tensor) -> list[Tensor]:
        """Three maps `(B, D, H/s, W/s)`, s = 8, 16, 32 -> three maps of the same shapes."""
        f5 = self.lateral_convs[0](s5)
        f4 = self.lateral_convs[1](_fuse(self.fpn_blocks[0], _upsample2x(f5), s4))
        p3 = _fuse(self.fpn_blocks[1], _upsample2x(f4), s3)
        p4 = _fuse(self.pan_blocks[0], self.downsample_convs[0](p3), f4)
        p5 = _fuse(self.pan_blocks[1], self.downsample_convs[1](p4), f5)
        return [p3, p4, p5]


class HybridEncoder(Ccff):
    """Projection to D channels, AIFI on S5, then CCFF.

    It is a `Ccff` and doesn't hold one, because the names of the released parameters have no level for it.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant.width, variant.expansion)
        fusion = dict(self.named_children())
        self.input_proj = nn.ModuleList(ConvNorm(channels, variant.width, 1) for channels in variant.backbone.channels)
        self.encoder = nn.ModuleList([Aifi(variant.width, variant.feedforward, variant.aifi_layers)])
        # The order of the released files: seeded weights and the optimizer states of earlier runs go by it.
        for name, module in fusion.items():
            delattr(self, name)
            self.add_module(name, module)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Three maps `(B, C_l, H/s, W/s)`, s = 8, 16, 32 -> three maps `(B, D, H/s, W/s)`."""
        s3, s4, s5 = (project(x) for project, x in zip(self.input_proj, maps, strict=True))
        return self.fuse_levels(s3, s4, self.encoder[0](s5))


def _fuse(block: nn.Module, upsampled: Tensor, lateral: Tensor) -> Tensor:
    """Join two maps `(B, D, h, w)` into one by a fusion block of 2 D channels."""
    return block(torch.cat((upsampled, lateral), dim=1))


def _upsample2x(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
