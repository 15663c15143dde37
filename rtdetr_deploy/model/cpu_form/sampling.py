"""Deformable attention that reads a table shared by all layers, with the axes of coordinates in front of the points.

query       (B, Q, D)
reference   (B, Q, 4)            cxcywh in [0, 1]
table       (B, T, layers * D)   values of all layers, side by side
output      (B, Q, D)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetr_deploy.errors import OptionError
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


PLANAR_CELLS: dict[str, type[PlanarBilinearCells] | type[PlanarNearestCells]] = {
    "gather": PlanarBilinearCells,
    "discrete": PlanarNearestCells,
}


class TableAttention(DeformableAttention):
    """A `DeformableAttention` without its value projection, whose values are columns of a table of all `layers`."""

    def __init__(self, attention: DeformableAttention, layer: int, layers: int) -> None:
        nn.Module.__init__(self)
        self.points, self.layer, self.layers = attention.points, layer, layers
        self.coordinates = PlanarLocations(self.points)
        assert isinstance(attention.sampler, CellSampler)
        self.use_sampler("discrete" if isinstance(attention.sampler.cells, NearestCells) else "gather")
        self.sampling_offsets = _axes_first(attention.sampling_offsets, sum(self.points))
        self.attention_weights = attention.attention_weights
        self.output_proj = attention.output_proj

    def use_sampler(self, name: str) -> None:
        """Sample with `gather` or `discrete`. Raises `OptionError` for another name: GridSample reads no table."""
        if name not in PLANAR_CELLS:
            raise OptionError(f"a table of values is sampled by {' or '.join(PLANAR_CELLS)}, not by {name}")
        self.sampler_name = name
        self.sampler = CellSampler(PLANAR_CELLS[name](self.points, self.layer, self.layers))

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
            rows = source.reshape(HEADS, total, 2, *source.shape[1:]).transpose(1, 2)
            target.copy_(rows.reshape(source.shape))
    return ordered
