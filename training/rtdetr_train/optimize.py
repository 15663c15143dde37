"""AdamW groups and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from rtdetr_train.options import TrainOptions

FINAL_SHARE = 0.01


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """Return AdamW: a lower rate for the backbone, no weight decay on norms and biases, frozen parameters left out."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim <= 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "share": options.backbone_rate if backbone else 1.0,
                "weight_decay": 0.0 if plain else options.weight_decay,
            }
            for (backbone, plain), parameters in groups.items()
        ],
        lr=options.rate,
        betas=(0.9, 0.999),
    )


def rate_share(step: int, steps: int, warmup: int) -> float:
    """Return the share of the full learning rate at `step` of `steps`: linear warm-up, then a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, the backbone's by its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
