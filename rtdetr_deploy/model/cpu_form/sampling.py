"""Deformable attention that reads a table shared by all layers, with the axes of coordinates in front of the points.

    query       (B, Q, D)
    reference   (B, Q, 4)            cxcywh in [0, 1]
    table       (B, T, layers * D)   values of all layers, side by side
    output      (B, Q, D)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_deploy.model.layers.deformable_attention import (
    BilinearCells,
    CellSampler,
    DeformableAttention,
    NearestCells,
    SamplingLocations,
)
from rtdetr_deploy.model.layers.tokens import LevelSizes
from rtdetr_deploy.model.variants import HEADS


class PlanarLocations(SamplingLocations):
    """`SamplingLocations` with x and y in front of the points."""

    def forward(self, offsets: Tensor, reference: Tensor) -> Tensor:
        """Offsets (B, Q, heads, 2, S) and reference (B, Q, 4) cxcywh -> locations (B, Q, heads, 2, S)."""
        per_point = torch.tensor([0.5 / n for n in self.points for _ in range(n)], device=offsets.device)
        centre, size = reference.reshape(-1, int(offsets.shape[1]), 1, 4, 1).chunk(2, dim=3)
        return centre + offsets * (size * per_point.to(offsets))


class PlanarBilinearCells(BilinearCells):
    """`BilinearCells` of locations (B, Q, heads, 2, S)."""

    def forward(self, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, heads, 2, S), weights (B, Q, heads, S) -> rows int32 and weights (B, Q, heads, 4 S)."""
        return self.find(locations, weights, sizes)


class PlanarNearestCells(NearestCells):
    """`NearestCells` of locations (B, Q, heads, 2, S)."""

    def forward(self, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, heads, 2, S), weights (B, Q, heads, S) -> rows int32 and weights (B, Q, heads, S)."""
        return self.find(locations, weights, sizes)


class TableAttention(DeformableAttention):
    """A `DeformableAttention` without its value projection, whose values are columns of a table of all `layers`."""

    def __init__(self, attention: DeformableAttention, layer: int, layers: int) -> None:
        nn.Module.__init__(self)
        self.points, self.sampler_name = attention.points, attention.sampler_name
        self.coordinates = PlanarLocations(self.points)
        cells = PlanarNearestCells if attention.sampler_name == "discrete" else PlanarBilinearCells
        self.sampler = CellSampler(cells(self.points, layer, layers))
        self.sampling_offsets = _axes_first(attention.sampling_offsets, sum(self.points))
        self.attention_weights = attention.attention_weights
        self.output_proj = attention.output_proj

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, sizes: LevelSizes) -> Tensor:
        """Query (B, Q, D), reference (B, Q, 4) cxcywh, the table as `memory`, levels of `sizes` -> (B, Q, D)."""
        total, queries, width = sum(self.points), int(query.shape[1]), int(query.shape[2])
        value = memory.reshape(-1, int(memory.shape[1]), int(memory.shape[2]) * HEADS // width, width // HEADS)
        offsets = self.sampling_offsets(query).reshape(-1, queries, HEADS, 2, total)
        weights = self.attention_weights(query).reshape(-1, queries, HEADS, total).softmax(dim=-1)
        return self.output_proj(self.sampler(value, self.coordinates(offsets, reference), weights, sizes))


def _axes_first(linear: nn.Linear, total: int) -> nn.Linear:
    """Return the projection of offsets with its rows ordered by head, axis, point in place of head, point, axis."""
    ordered = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device)
    with torch.no_grad():
        for target, source in ((ordered.weight, linear.weight), (ordered.bias, linear.bias)):
            target.copy_(source.unflatten(0, (HEADS, total, 2)).transpose(1, 2).flatten(0, 2))
    return ordered
