"""Linear maps of channels joined into one, and maps as tokens without a transpose of their numbers.

A linear layer and a 1x1 convolution are the same product; of two in a row without anything between them one is left:
W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2), computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a 1x1 convolution of weight (C_out, C_in) and bias (C_out,); float32."""
    conv = nn.Conv2d(int(weight.shape[1]), int(weight.shape[0]), 1, bias=bias is not None, device=weight.device)
    with torch.no_grad():
        conv.weight.copy_(weight[:, :, None, None])
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
    return conv


def join(first: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return one 1x1 convolution for a `first` one and a product by `weight` (C_out, C_mid) plus `bias` (C_out,)."""
    assert first.kernel_size == (1, 1)
    assert first.bias is not None
    wide = weight.double()
    return pointwise(wide @ first.weight[:, :, 0, 0].double(), wide @ first.bias.double() + bias.double())


def convolution_of(folded: nn.Module) -> nn.Conv2d:
    """Return the convolution of a folded `ConvNorm`."""
    assert isinstance(folded, nn.Sequential)
    conv = folded[0]
    assert isinstance(conv, nn.Conv2d)
    return conv


class LevelProjection(nn.Module):
    """A 1x1 convolution per level, their outputs as tokens: 3 maps (B, C, h, w) -> (B, T, D)."""

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(convs)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """3 maps (B, C, h, w) -> tokens (B, T, D), level by level, row-major.

        Channels go last before the axes of the map are joined: runtimes whose convolutions compute in that order, or
        leave it while they write, then copy nothing.
        """
        levels = []
        for conv, x in zip(self.levels, maps, strict=True):
            y = conv(x)
            channels, cells = int(y.shape[1]), int(y.shape[2]) * int(y.shape[3])
            levels.append(y.permute(0, 2, 3, 1).reshape(-1, cells, channels))
        return torch.cat(levels, dim=1)
