"""Contrastive denoising: noised copies of the targets as extra queries during training.

Each of R groups holds every target (padded to G, the largest number of objects of an image) twice: a positive whose
corner coordinates move by up to half of the box's size, and a negative that moves by half to a whole of it. Queries of
one group see only their own group and the matching queries; matching queries see none of them (arXiv 2203.03605,
section 3.3; the amounts are those of RT-DETR).

    content     (B, 2 G R, D)    embedding of the (possibly wrong) class
    reference   (B, 2 G R, 4)    logit of the noised box, cxcywh
    mask        (N, N)           0 where a query may see another, -inf where not; N = 2 G R + Q
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rtdetr_deploy.model.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from rtdetr_train.matcher import Matches, Targets

QUERIES = 100
LABEL_NOISE = 0.25
BOX_NOISE = 1.0
LOGIT_CLAMP = 1e-5


@dataclass(frozen=True)
class Denoising:
    """Noised queries, the attention mask, and which query denoises which target; `groups` is R."""

    content: Tensor
    reference: Tensor
    mask: Tensor
    matches: Matches
    groups: int

    @property
    def count(self) -> int:
        """Number of noised queries, which stand before the matching ones."""
        return self.content.shape[1]


def make_denoising(
    targets: Targets,
    embedding: nn.Embedding,
    queries: int,
    *,
    amount: int = QUERIES,
    generator: torch.Generator | None = None,
) -> Denoising | None:
    """Return noised queries for a batch, or None where it holds no object. `queries` are the matching ones, Q.

    `embedding` has K + 1 rows; the last one is padding. Random numbers come from `generator`, which lies on the CPU, as
    `targets` do.
    """
    max_count = max(targets.counts)
    if max_count == 0 or amount == 0:
        return None
    groups = max(1, amount // max_count)
    classes = embedding.num_embeddings - 1
    device = embedding.weight.device
    labels = torch.full((len(targets.counts), max_count), classes, dtype=torch.int64)
    boxes = torch.zeros(len(targets.counts), max_count, 4)
    for image, (count, rows) in enumerate(zip(targets.counts, targets.rows, strict=True)):
        labels[image, :count] = targets.labels[rows]
        boxes[image, :count] = targets.boxes[rows]
    labels, boxes = labels.repeat(1, 2 * groups), boxes.repeat(1, 2 * groups, 1)
    negative = torch.arange(2 * max_count * groups) % (2 * max_count) >= max_count
    noised_labels = _noise_labels(labels, classes, generator)
    noised_boxes = _noise_boxes(boxes, negative, generator)
    matches = _own_targets(targets, max_count, groups)
    return Denoising(
        content=embedding(noised_labels.to(device)),
        reference=torch.logit(noised_boxes, LOGIT_CLAMP).to(device),
        mask=_mask(max_count, groups, queries).to(device),
        matches=Matches(*(part.to(device) for part in (matches.image, matches.query, matches.target))),
        groups=groups,
    )


def _noise_labels(labels: Tensor, classes: int, generator: torch.Generator | None) -> Tensor:
    wrong = torch.randint(0, classes, labels.shape, generator=generator)
    swap = (torch.rand(labels.shape, generator=generator) < LABEL_NOISE) & (labels < classes)
    return torch.where(swap, wrong, labels)


def _noise_boxes(boxes: Tensor, negative: Tensor, generator: torch.Generator | None) -> Tensor:
    half = boxes[..., 2:].repeat(1, 1, 2) * 0.5 * BOX_NOISE
    sign = torch.randint(0, 2, boxes.shape, generator=generator) * 2.0 - 1.0
    part = torch.rand(boxes.shape, generator=generator) + negative[None, :, None].float()
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + sign * part * half).clamp(0.0, 1.0))


def _own_targets(targets: Targets, max_count: int, groups: int) -> Matches:
    """Positives of every group belong to the target they were made from; padding belongs to none."""
    images, queries, chosen = [], [], []
    for image, rows in enumerate(targets.rows):
        target = torch.arange(rows.start, rows.stop).repeat(groups)
        group = torch.arange(groups).repeat_interleave(rows.stop - rows.start)
        images.append(torch.full_like(target, image))
        queries.append(group * 2 * max_count + target - rows.start)
        chosen.append(target)
    return Matches(torch.cat(images), torch.cat(queries), torch.cat(chosen))


def _mask(max_count: int, groups: int, queries: int) -> Tensor:
    group = torch.arange(2 * max_count * groups + queries) // (2 * max_count)
    group[2 * max_count * groups :] = -1
    noised = group >= 0
    hidden = noised[None, :] & (group[:, None] != group[None, :])
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
