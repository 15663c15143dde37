"""Re-parameterization: RepVGG branches and every conv + batch normalization become one convolution each.

    before   SiLU(BN(conv 3x3) + BN(conv 1x1))   and   act(BN(conv))
    after    SiLU(conv 3x3 with bias)            and   act(conv with bias)

Source: arXiv 2101.03697, section 3.3, and arXiv 2304.08069, section 4.2. Each fold is proven where it is made: the
block runs on random numbers in float64 before and after, and a difference raises.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.model.backbones.hgnetv2 import ConvBn
from rtdetr_deploy.model.hybrid_encoder import RepVggBlock
from rtdetr_deploy.model.layers.conv_norm import ConvNorm, fuse_conv_norm
from rtdetr_deploy.model.rtdetr import RTDETR

PROOF_SIZE = 9
TOLERANCE = 1e-6
"""Largest allowed difference of a folded block, relative to its largest output; float32 storage costs about 1e-7."""


def reparameterize(model: RTDETR) -> RTDETR:
    """Return a copy of `model` (in eval mode) with all folds made; the model itself is left as it is.

    Raises `ArithmeticError` when a folded block computes something else than before.
    """
    folded = copy.deepcopy(model).eval()
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            replacement = _fold(child)
            if replacement is not None:
                _prove(child, replacement, name)
                setattr(parent, name, replacement)
    return folded


def _fold(block: nn.Module) -> nn.Module | None:
    """Return what replaces `block`, or None for a block that is not folded as a whole."""
    if isinstance(block, RepVggBlock):
        return _fold_repvgg(block)
    if isinstance(block, ConvNorm) and isinstance(block.norm, nn.BatchNorm2d):
        return nn.Sequential(fuse_conv_norm(block.conv, block.norm), block.act)
    if isinstance(block, ConvBn) and isinstance(block.bn, nn.BatchNorm2d):
        *padding, conv = block.conv if isinstance(block.conv, nn.Sequential) else [block.conv]
        assert isinstance(conv, nn.Conv2d)
        return nn.Sequential(*padding, fuse_conv_norm(conv, block.bn), block.act)
    return None


def _fold_repvgg(block: RepVggBlock) -> nn.Module:
    wide = fuse_conv_norm(block.conv1.conv, block.conv1.norm)
    narrow = fuse_conv_norm(block.conv2.conv, block.conv2.norm)
    assert wide.bias is not None
    assert narrow.bias is not None
    with torch.no_grad():
        wide.weight += functional.pad(narrow.weight, (1, 1, 1, 1))
        wide.bias += narrow.bias
    return nn.Sequential(wide, block.act)


@torch.no_grad()
def _prove(before: nn.Module, after: nn.Module, name: str) -> None:
    conv = next(module for module in after.modules() if isinstance(module, nn.Conv2d))
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, conv.in_channels, PROOF_SIZE, PROOF_SIZE, generator=generator, dtype=torch.float64)
    probe = probe.to(conv.weight.device)
    expected = _run_double(before, probe)
    error = (_run_double(after, probe) - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    if not error <= TOLERANCE:
        raise ArithmeticError(f"folding {name} changed its output by {float(error):.1e} (relative)")


def _run_double(block: nn.Module, probe: Tensor) -> Tensor:
    return copy.deepcopy(block).double()(probe)
