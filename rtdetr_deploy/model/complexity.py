"""Parameters and floating-point operations of a model.

Parameters are the learned numbers of a checkpoint before re-parameterization, all its decoder layers included and the
denoising embedding (training only) left out. FLOPs are counted by torch's `FlopCounterMode` on one image and the layers
that run by default: a multiply-add of a convolution or matrix product is two operations, element-wise work is none.
What was published: `COMPLEXITY` of `rtdetr_deploy.evaluate.published`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rtdetr_deploy.model.rtdetr import RTDETR
from rtdetr_deploy.model.variants import Variant


@dataclass(frozen=True)
class Complexity:
    """`parameters` in millions, `gflops` in 10^9 operations per image."""

    parameters: float
    gflops: float


def measure_complexity(variant: Variant, height: int = 640, width: int = 640) -> Complexity:
    """Count the model of `variant` for one `height` x `width` image. Nothing is allocated (meta device)."""
    with torch.device("meta"):
        model = RTDETR(variant).eval()
        complete = RTDETR(variant, variant.max_layers)
        images = torch.empty(1, 3, height, width)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(images)
    learned = sum(parameter.numel() for parameter in complete.parameters())
    parameters = learned - complete.decoder.denoising_class_embed.weight.numel()
    return Complexity(parameters / 1e6, counter.get_total_flops() / 1e9)
