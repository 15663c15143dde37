"""Hungarian matching of predictions to targets, per image.

cost = 2 * focal class cost (alpha 0.25, gamma 2) + 5 * L1(cxcywh) - 2 * GIoU (arXiv 2304.08069 and 2010.04159).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rtdetr_train.boxes import iou_and_giou, to_corners

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
ALPHA, GAMMA = 0.25, 2.0
EPSILON = 1e-8


@dataclass(frozen=True)
class Target:
    """Objects of one image: `labels (G,)` int64 and `boxes (G, 4)` cxcywh in [0, 1]."""

    labels: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> Target:
        """Return the target on `device`."""
        return Target(self.labels.to(device), self.boxes.to(device))


@dataclass(frozen=True)
class Matches:
    """Matched pairs of a batch: `image`, `query` and `target` indices, each `(M,)` int64."""

    image: Tensor
    query: Tensor
    target: Tensor


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Matches:
    """Assign each target to its own query: `logits (B, Q, K)`, `boxes (B, Q, 4)` cxcywh.

    Of more targets than queries, the cheapest Q are matched.
    """
    images, queries, chosen = [], [], []
    for index, target in enumerate(targets):
        if len(target.labels) == 0:
            continue
        cost = matching_cost(logits[index].float(), boxes[index].float(), target)
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        images.append(np.full(len(rows), index))
        queries.append(rows)
        chosen.append(columns)
    parts = (np.concatenate(part) if part else np.zeros(0, np.int64) for part in (images, queries, chosen))
    return Matches(*(torch.as_tensor(part, dtype=torch.int64, device=logits.device) for part in parts))


def matching_cost(logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
    """Return the cost `(Q, G)` of each pair of one image; finite whatever the predictions are."""
    probability = logits.sigmoid()[:, target.labels]
    positive = ALPHA * (1 - probability) ** GAMMA * -(probability + EPSILON).log()
    negative = (1 - ALPHA) * probability**GAMMA * -(1 - probability + EPSILON).log()
    distance = torch.cdist(boxes, target.boxes, p=1)
    _, giou = iou_and_giou(to_corners(boxes)[:, None], to_corners(target.boxes)[None])
    cost = CLASS_COST * (positive - negative) + L1_COST * distance - GIOU_COST * giou
    return torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
