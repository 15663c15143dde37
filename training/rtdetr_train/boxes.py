"""Boxes as tensors: cxcywh and xyxy in [0, 1] of the image, IoU and generalized IoU."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-9


def to_corners(boxes: Tensor) -> Tensor:
    """Cxcywh `(..., 4)` -> xyxy `(..., 4)`."""
    centre, size = boxes.chunk(2, dim=-1)
    return torch.cat((centre - 0.5 * size, centre + 0.5 * size), dim=-1)


def to_centres(corners: Tensor) -> Tensor:
    """Xyxy `(..., 4)` -> cxcywh `(..., 4)`."""
    low, high = corners.chunk(2, dim=-1)
    return torch.cat(((low + high) * 0.5, high - low), dim=-1)


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalized IoU (arXiv 1902.09630) of xyxy boxes, broadcast over the leading axes.

    Boxes of no area have IoU 0 with everything, and the result stays finite.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1) for boxes in (first, second)]
    union = (areas[0] + areas[1] - shared).clamp(min=EPSILON)
    iou = shared / union
    outer_low = torch.minimum(first[..., :2], second[..., :2])
    outer_high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = (outer_high - outer_low).clamp(min=0).prod(dim=-1).clamp(min=EPSILON)
    return iou, iou - (hull - union) / hull
