"""The whole training objective: losses of every decoder layer, of the selected encoder predictions, and of denoising.

The losses of the selected encoder predictions have varifocal targets too: they tie class score and localization, which
is the uncertainty-minimal query selection (arXiv 2304.08069, section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtdetr_deploy.model.decoder import DecoderOutput
from rtdetr_train.denoising import Denoising
from rtdetr_train.losses import Losses, matched_losses, set_losses
from rtdetr_train.matcher import Target


def objective(
    output: DecoderOutput, targets: Sequence[Target], denoising: Denoising | None, *, iou_targets: bool = True
) -> Losses:
    """Return every weighted loss by name; their sum is what training minimizes.

    Names: `vfl`, `bbox`, `giou` of the last layer; the same with `_aux_0`, ... of earlier ones, `_enc` of the selected
    encoder predictions, `_dn_0`, ... of denoising per layer. `iou_targets` False is the ablation that rewards every
    selected match alike instead of by its IoU.
    """
    count = float(max(1, sum(len(target.labels) for target in targets)))
    extra = 0 if denoising is None else denoising.count
    layers = len(output.logits)
    losses: Losses = {}
    for layer, (logits, boxes) in enumerate(zip(output.logits, output.boxes, strict=True)):
        suffix = "" if layer == layers - 1 else f"_aux_{layer}"
        _add(losses, matched_losses(logits[:, extra:], boxes[:, extra:], targets, count), suffix)
        if denoising is not None:
            noised = logits[:, :extra], boxes[:, :extra]
            parts = set_losses(*noised, targets, denoising.matches, count * denoising.groups)
            _add(losses, parts, f"_dn_{layer}")
    selection = output.selection
    encoder = matched_losses(
        selection.scores, torch.sigmoid(selection.reference), targets, count, iou_targets=iou_targets
    )
    _add(losses, encoder, "_enc")
    return losses


def _add(losses: dict[str, Tensor], parts: Losses, suffix: str) -> None:
    losses.update({name + suffix: value for name, value in parts.items()})
