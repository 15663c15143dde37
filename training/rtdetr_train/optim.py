"""What moves the weights: AdamW's groups, the learning rate of each step, and the moving average."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from rtdetr_train.options import TrainOptions

FINAL_FACTOR = 0.01
"""Of the learning rate, at the end."""
MAX_WARMUP_FRACTION = 0.1
"""Of a run's steps, so that short runs reach the full learning rate too."""


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
                "lr": options.lr * (options.backbone_lr_factor if backbone else 1.0),
                "weight_decay": 0.0 if plain else options.weight_decay,
            }
            for (backbone, plain), parameters in groups.items()
        ],
        betas=(0.9, 0.999),
    )


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: int, done: int = 0) -> LambdaLR:
    """Return the learning rates of a run of `steps` steps, of which the optimizer (its state restored) took `done`."""
    warmup = min(warmup, int(steps * MAX_WARMUP_FRACTION))
    return LambdaLR(optimizer, lambda step: lr_factor(step, steps, warmup), last_epoch=done - 1)


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate at `step` of `steps`: linear warm-up, then a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_FACTOR + (1 - FINAL_FACTOR) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def make_ema(model: nn.Module, decay: float, ramp: float) -> AveragedModel:
    """Return the exponential moving average of the weights of `model`, which is what is evaluated and shipped.

    `update_parameters(model)` takes a step: average <- d * average + (1 - d) * weights, where
    d = decay * (1 - exp(-updates / ramp)). The ramp lets the average forget the starting values quickly. Statistics of
    batch normalization are averaged too, counters are copied.
    """

    def average(averages: Any, weights: Any, _: Tensor | int) -> None:
        if averages[0].is_floating_point():
            # The count of the average itself: the one that is passed lies on the device, where reading it would wait.
            current_decay = decay * (1.0 - math.exp(-int(ema.n_averaged) / ramp))
            torch._foreach_lerp_(averages, weights, 1.0 - current_decay)
        else:
            torch._foreach_copy_(averages, weights)

    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    ema.update_parameters(model)  # the first one copies, and counts
    return ema.eval().requires_grad_(requires_grad=False)


def ema_updates(ema: AveragedModel) -> int:
    """Return the number of steps that the average has taken."""
    return int(ema.n_averaged) - 1


def set_ema_updates(ema: AveragedModel, updates: int) -> None:
    """Let the average go on after as many steps."""
    ema.n_averaged.fill_(updates + 1)
