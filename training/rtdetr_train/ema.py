"""Exponential moving average of a model's weights: what is evaluated and shipped."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from rtdetr_deploy.model import RTDETR


class Average:
    """`module` follows the model: average <- d * average + (1 - d) * weights, d = decay * (1 - exp(-updates / ramp)).

    The ramp lets the average forget the starting values quickly. Counters are copied.
    """

    def __init__(self, model: RTDETR, decay: float, ramp: float) -> None:
        self.module = copy.deepcopy(model).eval()
        self.decay = decay
        self.ramp = ramp
        self.updates = 0
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of `model`."""
        self.updates += 1
        decay = self.decay * (1.0 - math.exp(-self.updates / self.ramp))
        current = model.state_dict()
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name].to(value), 1.0 - decay)
            else:
                value.copy_(current[name])
