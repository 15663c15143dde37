"""Boxes as tensors: the only torch copy of cxcywh, xyxy, IoU and generalized IoU.

    cxcywh   (..., 4)   centre x, centre y, width, height
    xyxy     (..., 4)   left, top, right, bottom

Units are the caller's (pixels, or [0, 1] of the image). IoU and generalized IoU take xyxy. `rtdetr_deploy.boxes` has
the same names for NumPy.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_AREA = 1e-9
"""Areas are divided by no less, so that boxes of no area have an IoU of 0 and finite gradients."""


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """`(..., 4)` cxcywh -> `(..., 4)` xyxy."""
    centre, size = boxes.chunk(2, dim=-1)
    return torch.cat((centre - 0.5 * size, centre + 0.5 * size), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """`(..., 4)` xyxy -> `(..., 4)` cxcywh."""
    low, high = boxes.chunk(2, dim=-1)
    return torch.cat(((low + high) * 0.5, high - low), dim=-1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU in [0, 1] of every box of `first` (N, 4) with every box of `second` (M, 4): `(N, M)`."""
    return iou(first[:, None], second[None])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU in [0, 1] of xyxy boxes `(..., 4)`, pair by pair; leading axes are broadcast: `(...)`."""
    shared, union = _shared_and_union(first, second)
    return shared / union


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalized IoU in [-1, 1] of xyxy boxes `(..., 4)`, pair by pair; leading axes are broadcast.

    IoU - (hull - union) / hull, where the hull is the smallest box around both (arXiv 1902.09630, algorithm 1).
    """
    shared, union = _shared_and_union(first, second)
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = _area(low, high).clamp(min=MIN_AREA)
    return shared / union - (hull - union) / hull


def _shared_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    shared = _area(low, high)
    areas = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:])
    return shared, (areas - shared).clamp(min=MIN_AREA)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)
