"""Losses of one set of predictions, and the training objective: their sum over all sets that are supervised.

varifocal (alpha 0.75, gamma 2, target = IoU of the matched pair) x 1, L1 x 5, (1 - GIoU) x 2, each divided by the
number of target boxes (arXiv 2304.08069, section 4.3 and appendix; varifocal loss: arXiv 2008.13367).

The selected encoder predictions have varifocal targets too: they tie class score and localization, which is the
uncertainty-minimal query selection (section 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rtdetr_deploy.model.boxes import cxcywh_to_xyxy, generalized_iou, iou
from rtdetr_deploy.model.decoder import DecoderOutput
from rtdetr_train.denoising import Denoising
from rtdetr_train.matcher import Matches, Targets, match

ALPHA, GAMMA = 0.75, 2.0
WEIGHTS = {"vfl": 1.0, "bbox": 5.0, "giou": 2.0}

Losses = dict[str, Tensor]


def varifocal_loss(logits: Tensor, quality: Tensor, positive: Tensor) -> Tensor:
    """Return the varifocal loss, summed over all elements (arXiv 2008.13367, equation 2).

    `logits`, `quality` and `positive` have one shape, (B, Q, K). `quality` in [0, 1] is the target of each score: the
    IoU where `positive` is 1 (the class of a matched pair), 0 elsewhere. Positives weigh as much as their quality, all
    else alpha * score^gamma, which is not differentiated.
    """
    weight = ALPHA * logits.detach().sigmoid() ** GAMMA * (1 - positive) + quality
    return functional.binary_cross_entropy_with_logits(logits, quality, weight, reduction="sum")


def losses_of_predictions(
    logits: Tensor, boxes: Tensor, targets: Targets, matches: Matches, count: float, *, iou_targets: bool = True
) -> Losses:
    """Return the weighted losses of `logits (B, Q, K)` and `boxes (B, Q, 4)` cxcywh for given matches, over `count`.

    `iou_targets` False replaces the varifocal target by 1 for every matched pair (an ablation).
    """
    logits, boxes = logits.float(), boxes.float()
    found, wanted = boxes[matches.image, matches.query], targets.boxes[matches.target]
    corners, wanted_corners = cxcywh_to_xyxy(found), targets.xyxy[matches.target]
    with torch.no_grad():
        overlap = iou(corners, wanted_corners)
        matched = matches.image, matches.query, targets.labels[matches.target]
        positive, quality = torch.zeros_like(logits), torch.zeros_like(logits)
        positive[matched] = 1.0
        quality[matched] = overlap if iou_targets else 1.0
    parts = {
        "vfl": varifocal_loss(logits, quality, positive),
        "bbox": (found - wanted).abs().sum(),
        "giou": (1 - generalized_iou(corners, wanted_corners)).sum(),
    }
    return {name: WEIGHTS[name] * value / count for name, value in parts.items()}


def objective(
    output: DecoderOutput, targets: Targets, denoising: Denoising | None, *, iou_targets: bool = True
) -> Losses:
    """Return every weighted loss by name; their sum is what training minimizes.

    Names: `vfl`, `bbox`, `giou` of the last layer; the same with `_aux_0`, ... of earlier ones, `_enc` of the selected
    encoder predictions, `_dn_0`, ... of denoising per layer. `iou_targets` False is the ablation that rewards every
    selected match alike instead of by its IoU.
    """
    count = float(max(1, len(targets)))
    extra = 0 if denoising is None else denoising.count
    last = len(output.logits) - 1
    sets = {
        "" if layer == last else f"_aux_{layer}": (logits[:, extra:], boxes[:, extra:])
        for layer, (logits, boxes) in enumerate(zip(output.logits, output.boxes, strict=True))
    }
    sets["_enc"] = output.selection.scores, torch.sigmoid(output.selection.reference)
    all_logits, all_boxes = map(torch.stack, zip(*sets.values(), strict=True))
    found = match(all_logits, all_boxes, targets)
    losses: Losses = {}
    for (suffix, (logits, boxes)), matches in zip(sets.items(), found, strict=True):
        by_iou = iou_targets or suffix != "_enc"
        _add(losses, losses_of_predictions(logits, boxes, targets, matches, count, iou_targets=by_iou), suffix)
    if denoising is not None:
        for layer, (logits, boxes) in enumerate(zip(output.logits, output.boxes, strict=True)):
            noised, weight = (logits[:, :extra], boxes[:, :extra]), count * denoising.groups
            _add(losses, losses_of_predictions(*noised, targets, denoising.matches, weight), f"_dn_{layer}")
    return losses


def _add(losses: Losses, parts: Losses, suffix: str) -> None:
    losses.update({name + suffix: value for name, value in parts.items()})
