"""Hungarian matching of predictions to targets, per image.

cost = 2 * focal class cost (alpha 0.25, gamma 2) + 5 * L1(cxcywh) - 2 * GIoU (arXiv 2304.08069 and 2010.04159).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rtdetr_deploy.model.boxes import cxcywh_to_xyxy, generalized_iou

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
ALPHA, GAMMA = 0.25, 2.0
EPSILON = 1e-8


@dataclass(frozen=True)
class Targets:
    """The T objects of a batch of B images, image after image.

    `labels (T,)` int64, `boxes (T, 4)` float32 cxcywh in [0, 1], and `counts`, the objects of each image (B numbers).
    """

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    @cached_property
    def xyxy(self) -> Tensor:
        """The boxes `(T, 4)` as xyxy."""
        return cxcywh_to_xyxy(self.boxes)

    @property
    def rows(self) -> list[slice]:
        """The rows of each image."""
        return [slice(start, end) for start, end in pairwise((0, *accumulate(self.counts)))]

    def to(self, device: torch.device) -> Targets:
        """Return the targets on `device`."""
        return Targets(self.labels.to(device), self.boxes.to(device), self.counts)


def join_targets(images: Sequence[tuple[Tensor, Tensor]]) -> Targets:
    """Return the targets of a batch from the labels `(G,)` and cxcywh boxes `(G, 4)` of each image."""
    labels, boxes = zip(*images, strict=True)
    return Targets(torch.cat(labels), torch.cat(boxes), tuple(len(part) for part in labels))


@dataclass(frozen=True)
class Matches:
    """Matched pairs of a batch: `image`, `query` in it, and row of the `target` in `Targets`; each `(M,)` int64."""

    image: Tensor
    query: Tensor
    target: Tensor


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Targets) -> list[Matches]:
    """Assign each target to a query of its own, in each of S sets of predictions of the same images.

    `logits (S, B, Q, K)`, `boxes (S, B, Q, 4)` cxcywh; returns S matches. Of more targets than queries, the cheapest Q
    are matched. Costs of all sets come from the device in one copy, and matches go there in one.
    """
    logits, boxes = logits.float(), boxes.float()
    xyxy = cxcywh_to_xyxy(boxes)
    costs = [
        matching_cost(logits[:, image], boxes[:, image], xyxy[:, image], targets, rows)
        for image, rows in enumerate(targets.rows)
    ]
    numbers = torch.cat(costs, dim=-1).cpu().numpy()  # (S, Q, T)
    found = np.stack([_assign(cost, targets.rows) for cost in numbers])
    return [Matches(*part) for part in torch.from_numpy(found).to(logits.device)]


def _assign(cost: NDArray[np.float32], rows: Sequence[slice]) -> NDArray[np.int64]:
    """Return image, query and target row of every match `(3, M)` from the costs `(Q, T)` of one set."""
    found = [np.zeros((3, 0), np.int64)]
    for image, part in enumerate(rows):
        query, target = linear_sum_assignment(cost[:, part])
        found.append(np.stack([np.full_like(query, image), query, target + part.start]))
    return np.concatenate(found, axis=1)


def matching_cost(logits: Tensor, boxes: Tensor, xyxy: Tensor, targets: Targets, rows: slice) -> Tensor:
    """Return the cost `(S, Q, G)` of each pair of one image, whose targets are `rows`; finite whatever is predicted.

    `logits (S, Q, K)`; `boxes (S, Q, 4)` as cxcywh and as `xyxy`.
    """
    probability = logits.sigmoid()[..., targets.labels[rows]]
    positive = ALPHA * (1 - probability) ** GAMMA * -(probability + EPSILON).log()
    negative = (1 - ALPHA) * probability**GAMMA * -(1 - probability + EPSILON).log()
    distance = torch.cdist(boxes, targets.boxes[rows], p=1)
    giou = generalized_iou(xyxy[:, :, None], targets.xyxy[rows])
    cost = CLASS_COST * (positive - negative) + L1_COST * distance - GIOU_COST * giou
    return torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
