"""The encoders that the paper compares on the way to its own (arXiv 2304.08069, section 4.2, figure 3), as modules.

    input    3 maps  (B, C_l, H/s, W/s)   s = 8, 16, 32   C_l = backbone channels
    output   3 maps  (B, D,   H/s, W/s)   same strides    D   = variant.width

    A      projection alone
    B      A, then a transformer layer inside each level, shared by the levels
    C      B, then a transformer layer over all levels together
    D      B, then convolution across levels as in PANet: top-down and bottom-up, added and smoothed by 3x3
    D_S5   D with the transformer layer on S5 only
    E      what RT-DETR ships: `HybridEncoder`
    C_MSE  the other reading of the paper's C: A, then the layer over all levels together alone. C's published time and
           parameters fit this one (docs/measurements.md)

For their latency alone: the paper doesn't print every detail of A to D, and no weights exist.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.model.hybrid_encoder import Aifi, AifiLayer, HybridEncoder, position_embedding
from rtdetr_deploy.model.layers.conv_norm import ConvNorm
from rtdetr_deploy.model.layers.tokens import flatten_map
from rtdetr_deploy.model.variants import Variant


class Projection(nn.Module):
    """A: every level to D channels."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(ConvNorm(channels, variant.width, 1) for channels in variant.backbone.channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the backbone's maps (B, C_l, H/s, W/s) as (B, D, H/s, W/s)."""
        return [project(x) for project, x in zip(self.input_proj, maps, strict=True)]


class SingleScale(Projection):
    """B: attention inside each level, by one layer."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant)
        self.encoder = Aifi(variant.width, variant.feedforward)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return (B, D, H/s, W/s) for each (B, C_l, H/s, W/s); a level's tokens (B, H/s * W/s, D) see each other."""
        return [self.encoder(x) for x in super().forward(maps)]


class MultiScale(SingleScale):
    """C: then attention over the tokens of all levels."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant)
        self.across = AifiLayer(variant.width, variant.feedforward)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return (B, D, H/s, W/s) for each (B, C_l, H/s, W/s); all levels' tokens (B, sum of H/s * W/s, D) meet."""
        return _attend_across(super().forward(maps), self.across)


class MultiScaleAlone(Projection):
    """C_MSE: attention over the tokens of all levels, without that inside of each."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant)
        self.across = AifiLayer(variant.width, variant.feedforward)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """As `MultiScale`."""
        return _attend_across(super().forward(maps), self.across)


def _attend_across(levels: list[Tensor], layer: AifiLayer) -> list[Tensor]:
    sizes = [(int(x.shape[2]), int(x.shape[3])) for x in levels]
    channels = int(levels[0].shape[1])
    tables = [torch.from_numpy(position_embedding(height, width, channels)) for height, width in sizes]
    tokens = torch.cat([flatten_map(x) for x in levels], dim=1)
    tokens = layer(tokens, torch.cat(tables, dim=1).to(tokens))
    parts = tokens.split([height * width for height, width in sizes], dim=1)
    return [part.transpose(1, 2).reshape(-1, channels, *size) for part, size in zip(parts, sizes, strict=True)]


class Panet(SingleScale):
    """D: attention inside levels, then convolution across them. `only_s5` attends in the coarsest level alone."""

    def __init__(self, variant: Variant, *, only_s5: bool = False) -> None:
        super().__init__(variant)
        width = variant.width
        self._only_s5 = only_s5
        self.smooth_down = nn.ModuleList(ConvNorm(width, width, 3, 1, nn.SiLU()) for _ in range(2))
        self.smooth_up = nn.ModuleList(ConvNorm(width, width, 3, 1, nn.SiLU()) for _ in range(2))
        self.downsample = nn.ModuleList(ConvNorm(width, width, 3, 2, nn.SiLU()) for _ in range(2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return (B, D, H/s, W/s) for each (B, C_l, H/s, W/s); H and W are multiples of 32, so that levels add up."""
        if self._only_s5:
            s3, s4, s5 = Projection.forward(self, maps)
            s5 = self.encoder(s5)
        else:
            s3, s4, s5 = super().forward(maps)
        f4 = self.smooth_down[0](s4 + functional.interpolate(s5, scale_factor=2.0, mode="nearest"))
        p3 = self.smooth_down[1](s3 + functional.interpolate(f4, scale_factor=2.0, mode="nearest"))
        p4 = self.smooth_up[0](f4 + self.downsample[0](p3))
        return [p3, p4, self.smooth_up[1](s5 + self.downsample[1](p4))]


def build_encoder(name: str, variant: Variant) -> nn.Module:
    """Return the encoder called `name` (A, B, C, C_MSE, D, D_S5 or E) with random weights."""
    if name in ("D", "D_S5"):
        return Panet(variant, only_s5=name == "D_S5")
    kinds = {"A": Projection, "B": SingleScale, "C": MultiScale, "C_MSE": MultiScaleAlone, "E": HybridEncoder}
    return kinds[name](variant)
