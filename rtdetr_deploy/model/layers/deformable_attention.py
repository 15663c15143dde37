"""Multi-scale deformable attention with three interchangeable samplers.

    query       (B, Q, D)
    reference   (B, Q, 4)      cxcywh in [0, 1]
    memory      (B, T, D)      tokens of all levels, level by level, row-major
    output      (B, Q, D)

offsets = Linear(query) -> (heads, S, 2); weights = softmax over the S points of all levels;
location = reference.xy + offset * reference.wh * 0.5 / points(level); pixel centres at (i + 0.5) / size, zero
outside the map (arXiv 2010.04159, equation 3; arXiv 2407.17140 for points per level and discrete sampling).
S = sum of the points of all levels. Parameter names follow the released checkpoints (strict=True).

The arithmetic on coordinates has modules of its own, without parameters, so that exports can name it: half precision
moves a coordinate by up to 0.05 cells of 80, while values lose nothing that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.model.layers.tokens import LevelSizes, batch_starts
from rtdetr_deploy.model.variants import DECODER_WIDTH, HEADS, Sampling


class SamplingLocations(nn.Module):
    """Where each query reads: its reference box's centre, moved by offsets in units of the box."""

    def __init__(self, points: Sequence[int]) -> None:
        super().__init__()
        self.points = tuple(points)

    def forward(self, offsets: Tensor, reference: Tensor) -> Tensor:
        """Offsets (B, Q, heads, S, 2) and reference (B, Q, 4) cxcywh -> locations (B, Q, heads, S, 2), x and y."""
        per_point = torch.tensor([[0.5 / n] for n in self.points for _ in range(n)], device=offsets.device)
        centre, size = reference.reshape(-1, int(offsets.shape[1]), 1, 1, 4).chunk(2, dim=-1)
        return centre + offsets * (size * per_point.to(offsets))


class BilinearCells(nn.Module):
    """The four cells around each location, clamped to the map; one outside of it has weight zero.

    Bilinear and attention weights are multiplied here, so that a weighted sum over 4 S rows is all that is left.
    """

    def __init__(self, points: Sequence[int], layer: int = 0, layers: int = 1) -> None:
        super().__init__()
        self.points = tuple(points)
        self.layer, self.layers = layer, layers

    def forward(self, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, heads, S, 2), weights (B, Q, heads, S) -> rows int32 and weights (B, Q, heads, 4 S).

        A row is token * heads + head, the same in every image; where `layers` share a table, that of `layer` is
        (token * layers + layer) * heads + head.
        """
        return self.find(locations.transpose(-1, -2), weights, sizes)

    def find(self, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """As `forward`, of locations (B, Q, heads, 2, S).

        The two sides of a location are a constant that broadcasts: a Concat of them would end the chain of element-wise
        operations that engines fuse. Points come last, because CPUs broadcast along long rows faster.
        """
        constants = _per_point(sizes, self.points, int(locations.shape[2]), self.layer, self.layers, locations.device)
        size = constants.sizes.to(locations.dtype)
        # Beyond one pixel outside the map all four neighbours weigh zero, so clamping changes nothing and keeps
        # far locations within the integer range.
        position = torch.minimum((locations * size - 0.5).clamp(min=-1.0), size).unsqueeze(-2)
        side = torch.tensor([[0.0], [1.0]], dtype=locations.dtype, device=locations.device)
        corner = position.floor() + side  # (B, Q, heads, 2 axes, 2 sides, S)
        share = 1.0 - (position - corner).abs()
        inside = torch.minimum(corner.clamp(min=0.0), size.unsqueeze(-2) - 1.0)
        share = torch.where(inside == corner, share, 0.0)
        rows = _cross(inside.to(torch.int32) * constants.steps.unsqueeze(-2), torch.add) + constants.starts
        mix = _cross(share, torch.mul) * weights.unsqueeze(-2).unsqueeze(-2)
        queries, heads, total = (int(n) for n in weights.shape[1:])
        return rows.reshape(-1, queries, heads, 4 * total), mix.reshape(-1, queries, heads, 4 * total)


def _cross(sides: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Join either side of y with either side of x: (B, Q, heads, 2, 2, S) by axis and side -> (.., y, x, S)."""
    queries, heads, total = int(sides.shape[1]), int(sides.shape[2]), int(sides.shape[5])
    return join(sides[..., 1:, :, :].reshape(-1, queries, heads, 2, 1, total), sides[..., :1, :, :])


class NearestCells(nn.Module):
    """RT-DETRv2's discrete sampling: the cell floor(location * size + 0.5), clamped to the map."""

    def __init__(self, points: Sequence[int], layer: int = 0, layers: int = 1) -> None:
        super().__init__()
        self.points = tuple(points)
        self.layer, self.layers = layer, layers

    def forward(self, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, heads, S, 2), weights (B, Q, heads, S) -> rows int32 (B, Q, heads, S) and the weights.

        A row is counted as by `BilinearCells`.
        """
        return self.find(locations.transpose(-1, -2), weights, sizes)

    def find(self, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """As `forward`, of locations (B, Q, heads, 2, S)."""
        constants = _per_point(sizes, self.points, int(locations.shape[2]), self.layer, self.layers, locations.device)
        size = constants.sizes.to(locations.dtype)
        cell = torch.minimum((locations * size + 0.5).floor().clamp(min=0.0), size - 1.0)
        steps = cell.to(torch.int32) * constants.steps  # (B, Q, heads, 2 axes, S)
        rows = (steps[..., :1, :] + steps[..., 1:, :]) + constants.starts.squeeze(-2)
        return rows.reshape(-1, *(int(n) for n in weights.shape[1:])), weights


class CellSampler(nn.Module):
    """Sampling as one gather of rows and their weighted sum, without GridSample; `cells` says which rows.

    `fuses` is how the sum is written: products and a sum, which GPUs compute while they gather, or one row times a
    matrix, which is faster on CPUs.
    """

    def __init__(self, cells: nn.Module) -> None:
        super().__init__()
        self.cells = cells
        self.fuses = False

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> Tensor:
        """Value (B, T, heads, d), locations (B, Q, heads, S, 2), weights (B, Q, heads, S) -> (B, Q, heads * d).

        All rows come from one flat table with int32 indices: a single Gather of contiguous rows of d numbers.
        """
        tokens, heads, dim = int(value.shape[1]), int(value.shape[2]), int(value.shape[3])
        rows, mix = self.cells(locations, weights, sizes)
        rows = rows + batch_starts(value, tokens * heads)[:, None, None, None]
        fetched = functional.embedding(rows, value.reshape(-1, dim))  # (B, Q, heads, N, d)
        mixed = (mix.unsqueeze(-1) * fetched).sum(-2) if self.fuses else mix.unsqueeze(-2) @ fetched
        return mixed.reshape(-1, int(rows.shape[1]), int(rows.shape[2]) * dim)


class GridSampler(nn.Module):
    """Bilinear sampling by `grid_sample`, one call per level: the definition, and GridSample in ONNX."""

    def __init__(self, points: Sequence[int]) -> None:
        super().__init__()
        self.points = tuple(points)

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> Tensor:
        """Value (B, T, heads, d), locations (B, Q, heads, S, 2), weights (B, Q, heads, S) -> (B, Q, heads * d)."""
        heads, dim = int(value.shape[2]), int(value.shape[3])
        queries = int(locations.shape[1])
        tokens, total = int(value.shape[1]), sum(self.points)
        maps = value.permute(0, 2, 3, 1).reshape(-1, dim, tokens)  # (B * heads, d, T)
        grids = (2.0 * locations - 1.0).transpose(1, 2).reshape(-1, queries, total, 2)  # (B * heads, Q, S, 2)
        samples = []
        for image, grid, (height, width) in zip(
            torch.split(maps, [height * width for height, width in sizes], dim=2),
            torch.split(grids, list(self.points), dim=2),
            sizes,
            strict=True,
        ):
            image = image.reshape(-1, dim, height, width)
            samples.append(
                functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            )
        weights = weights.transpose(1, 2).reshape(-1, 1, queries, total)
        mixed = (torch.cat(samples, dim=3) * weights).sum(dim=3)  # (B * heads, d, Q)
        return mixed.reshape(-1, heads * dim, queries).transpose(1, 2)


class _PerPoint(NamedTuple):
    """Constants of the sampling points, int32.

    `sizes` (2, S): width and height of the level. `steps` (2, S): by how much a row of the table grows from one cell to
    the next on either axis. `starts` (heads, 1, 1, S): the row of the level's first cell.
    """

    sizes: Tensor
    steps: Tensor
    starts: Tensor


def _per_point(
    sizes: LevelSizes, points: Sequence[int], heads: int, layer: int, layers: int, device: torch.device
) -> _PerPoint:
    levels = torch.tensor([i for i, count in enumerate(points) for _ in range(count)], device=device)
    columns = torch.arange(layer * heads, (layer + 1) * heads, dtype=torch.int32)[:, None, None, None].to(device)
    height, width = torch.tensor(list(sizes), dtype=torch.int32, device=device).unbind(1)
    cells = height * width
    first = cells.cumsum(0, dtype=torch.int32) - cells
    row = heads * layers
    steps = torch.stack((torch.ones_like(width), width)) * row
    return _PerPoint(torch.stack((width, height))[:, levels], steps[:, levels], (first * row)[levels] + columns)


SAMPLERS: dict[str, Callable[[Sequence[int]], nn.Module]] = {
    "grid": GridSampler,
    "gather": lambda points: CellSampler(BilinearCells(points)),
    "discrete": lambda points: CellSampler(NearestCells(points)),
}
"""Name -> a sampler for so many points per level. `grid` and `gather` are the same function."""


class DeformableAttention(nn.Module):
    """Each query reads a few learned locations around its reference box on every level."""

    def __init__(self, points: Sequence[int], sampling: Sampling, width: int = DECODER_WIDTH) -> None:
        super().__init__()
        total = sum(points)
        self.points = tuple(points)
        self.coordinates = SamplingLocations(points)
        self.use_sampler("discrete" if sampling == "discrete" else "grid")
        self.sampling_offsets = nn.Linear(width, HEADS * total * 2)
        self.attention_weights = nn.Linear(width, HEADS * total)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def use_sampler(self, name: str) -> None:
        """Sample with another of `SAMPLERS`. Raises `OptionError` for an unknown name."""
        if name not in SAMPLERS:
            raise OptionError(f"unknown sampler {name!r}; choose from {', '.join(SAMPLERS)}")
        self.sampler_name = name
        self.sampler = SAMPLERS[name](self.points)

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, sizes: LevelSizes) -> Tensor:
        """Query (B, Q, D), reference (B, Q, 4) cxcywh, memory (B, T, D), levels of `sizes` -> (B, Q, D)."""
        total, queries = sum(self.points), int(query.shape[1])
        tokens, width = int(memory.shape[1]), int(memory.shape[2])
        value = self.value_proj(memory).reshape(-1, tokens, HEADS, width // HEADS)
        offsets = self.sampling_offsets(query).reshape(-1, queries, HEADS, total, 2)
        weights = self.attention_weights(query).reshape(-1, queries, HEADS, total).softmax(dim=-1)
        locations = self.coordinates(offsets, reference)
        return self.output_proj(self.sampler(value, locations, weights, sizes))
