"""Reproducible weights for a model that nobody has trained: for demonstrations, latency measurements and tests.

They detect nothing. Their scale is that of a trained network (activations neither vanish nor explode, class scores
differ between tokens), so that numbers and times behave as with real weights.
"""

from __future__ import annotations

import torch
from torch import nn

SCORE_GAIN = 3.0
WEIGHT_GAIN = 1.1
PRIOR = -7.0
"""Mean bias of the class heads: the best of the many random scores then end up near 0.5 instead of 1."""


@torch.no_grad()
def fill_randomly(model: nn.Module, seed: int = 0) -> None:
    """Overwrite every parameter and running statistic of `model`, the same for the same `seed` on every machine."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point() or name.endswith("_scale"):
            continue
        if name.endswith("running_var"):
            value.uniform_(0.8, 1.25, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(PRIOR if _is_class_head(name) else 0.0, 0.1, generator=generator)
        elif value.ndim == 1:
            value.uniform_(0.8, 1.2, generator=generator)
        else:
            gain = SCORE_GAIN if _is_class_head(name) else WEIGHT_GAIN
            value.normal_(0.0, gain / value[0].numel() ** 0.5, generator=generator)


def _is_class_head(name: str) -> bool:
    return "score_head" in name or "class_embed" in name
