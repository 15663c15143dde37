"""How far a model moves under nothing but rounding: the yardstick for files that miss the fixed tolerance.

Some models multiply rounding errors: discrete sampling jumps to the neighbouring cell, strong sampling offsets and
close calls in the query selection do likewise. Any faithful file of such a model differs from it, and by how much
can be measured without the file: the model in float32 against itself in float64.

One float32 run is a single sample, so several are made: the encoder's maps are disturbed by noise of about the
size of their own rounding error, and the decoder, where small differences grow, runs again on each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rtdetr_deploy.model.family import family_of
from rtdetr_export.verify.differences import RawOutput

RUNS = 8
AMPLITUDE = 2.0
"""Size of the noise in rounding errors of the maps (standard deviation): other runtimes sum in other orders."""


@dataclass(frozen=True)
class OwnRounding:
    """The model's output for one image in float64, rounded at the end, and its `rounded` outputs in float32."""

    exact: RawOutput
    rounded: tuple[RawOutput, ...]


class Float64Reference:
    """Runs a model in float64 and, several times, in float32; holds the float64 copy."""

    def __init__(self, model: nn.Module) -> None:
        self._family = family_of(model)
        self._single = model
        self._double = copy.deepcopy(model).double()

    @torch.no_grad()
    def measure(self, image: Tensor) -> OwnRounding:
        """Return the outputs for one `image` (1, 3, H, W) float32 in [0, 1]. The same image gives the same outputs."""
        maps = self._family.encode(self._single, image)
        exact = self._family.encode(self._double, image.double())
        rounded = [self._decode(self._single, maps)]
        rounded += [self._decode(self._single, disturbed) for disturbed in _disturb(exact, maps)]
        return OwnRounding(self._decode(self._double, exact), tuple(rounded))

    def _decode(self, model: nn.Module, maps: list[Tensor]) -> RawOutput:
        logits, boxes = self._family.decode(model, maps)
        return RawOutput(logits[0].float().numpy(), boxes[0].float().numpy())


def _disturb(exact: list[Tensor], maps: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield `exact` with noise of `AMPLITUDE` times its distance from `maps`, `RUNS` times."""
    generator = torch.Generator().manual_seed(0)
    sizes = [AMPLITUDE * (single - double).std() for single, double in zip(maps, exact, strict=True)]
    for _ in range(RUNS):
        noise = [torch.randn(double.shape, generator=generator, dtype=double.dtype) for double in exact]
        yield [(double + size * part).float() for double, size, part in zip(exact, sizes, noise, strict=True)]
