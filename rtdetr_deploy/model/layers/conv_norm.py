"""Convolution followed by batch normalization: the brick of backbone, encoder and input projections.

    input    (B, C_in,  H,   W)
    output   (B, C_out, H/s, W/s)   s = stride

`fuse_conv_norm` folds the normalization of a trained pair into the convolution (running statistics, eval mode).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """`activation(norm(conv(x)))`, padded so that stride 1 keeps the size."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, (kernel - 1) // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels_out)
        self.act = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` -> `(B, C_out, H/s, W/s)`, s = stride."""
        return self.act(self.norm(self.conv(x)))


def fuse_conv_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return one convolution with bias that computes `norm(conv(x))` with the running statistics.

    kernel * gamma / sqrt(var + eps) and beta - mean * gamma / sqrt(var + eps) (arXiv 2101.03697, section 3.3),
    computed in float64.
    """
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"expected a BatchNorm2d with running statistics, got {type(norm).__name__}")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        dtype=conv.weight.dtype,
        device=conv.weight.device,
    )
    with torch.no_grad():
        fused.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        assert fused.bias is not None
        fused.bias.copy_(bias)
    return fused
