"""Losses of one set of predictions, and their sum over all sets that are supervised.

varifocal (alpha 0.75, gamma 2, target = IoU of the matched pair) x 1, L1 x 5, (1 - GIoU) x 2, each divided by the
number of target boxes (arXiv 2304.08069, section 4.3 and appendix; varifocal loss: arXiv 2008.13367).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rtdetr_train.boxes import iou_and_giou, to_corners
from rtdetr_train.matcher import Matches, Target, match

ALPHA, GAMMA = 0.75, 2.0
WEIGHTS = {"vfl": 1.0, "bbox": 5.0, "giou": 2.0}

Losses = dict[str, Tensor]


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: Sequence[Target],
    matches: Matches,
    count: float,
    *,
    iou_targets: bool = True,
) -> Losses:
    """Return the weighted losses of `logits (B, Q, K)` and `boxes (B, Q, 4)` for given matches, divided by `count`.

    `iou_targets` False replaces the varifocal target by 1 for every matched pair (an ablation).
    """
    logits, boxes = logits.float(), boxes.float()
    wanted = _matched(targets, matches)
    found = boxes[matches.image, matches.query]
    iou, giou = iou_and_giou(to_corners(found), to_corners(wanted.boxes))
    quality = torch.zeros_like(logits)
    reward = iou.detach() if iou_targets else torch.ones_like(iou)
    quality[matches.image, matches.query, wanted.labels] = reward
    positive = torch.zeros_like(logits)
    positive[matches.image, matches.query, wanted.labels] = 1.0
    weight = ALPHA * logits.detach().sigmoid() ** GAMMA * (1 - positive) + quality
    varifocal = functional.binary_cross_entropy_with_logits(logits, quality, weight, reduction="sum")
    parts = {"vfl": varifocal, "bbox": (found - wanted.boxes).abs().sum(), "giou": (1 - giou).sum()}
    return {name: WEIGHTS[name] * value / count for name, value in parts.items()}


def _matched(targets: Sequence[Target], matches: Matches) -> Target:
    """Return the target of each match as one batch of rows."""
    offsets = torch.tensor([0, *(len(target.labels) for target in targets)], device=matches.target.device).cumsum(0)
    rows = offsets[matches.image] + matches.target
    labels = torch.cat([target.labels for target in targets])
    boxes = torch.cat([target.boxes for target in targets])
    return Target(labels[rows], boxes[rows])


def matched_losses(
    logits: Tensor, boxes: Tensor, targets: Sequence[Target], count: float, *, iou_targets: bool = True
) -> Losses:
    """Match, then return the losses of one set of predictions."""
    return set_losses(logits, boxes, targets, match(logits, boxes, targets), count, iou_targets=iou_targets)
