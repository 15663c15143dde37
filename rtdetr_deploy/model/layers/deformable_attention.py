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

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.model.layers.tokens import LevelSizes
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

    Bilinear and attention weights are multiplied here, so that `(1, 4 S) @ (4 S, d)` finishes the sum.
    """

    def __init__(self, points: Sequence[int]) -> None:
        super().__init__()
        self.points = tuple(points)

    def forward(self, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, heads, S, 2), weights (B, Q, heads, S) -> tokens int32 and weights (B, Q, heads, 4 S)."""
        axes, starts = _point_constants(sizes, self.points, locations)
        size, count = axes.to(locations.dtype), sum(self.points)
        # Beyond one pixel outside the map all four neighbours weigh zero, so clamping changes nothing and keeps
        # far locations within the integer range.
        position = torch.minimum((locations * size - 0.5).clamp(min=-1.0), size)
        low = position.floor()
        fraction = position - low
        corner = torch.stack((low, low + 1.0), dim=-1)  # (B, Q, heads, S, 2 axes, 2 sides)
        share = torch.stack((1.0 - fraction, fraction), dim=-1)
        limit = size.unsqueeze(-1) - 1.0
        inside = torch.minimum(corner.clamp(min=0.0), limit)
        share = torch.where(inside == corner, share, 0.0)
        index = inside.to(torch.int32)
        x, y = index[..., 0, :], index[..., 1, :]
        tokens = y.unsqueeze(-1) * axes[:, :1, None] + x.unsqueeze(-2) + starts[:, None, None]
        mix = share[..., 1, :].unsqueeze(-1) * share[..., 0, :].unsqueeze(-2) * weights[..., None, None]
        shape = (-1, int(tokens.shape[1]), int(tokens.shape[2]), count * 4)
        return tokens.reshape(shape), mix.reshape(shape)


class NearestCells(nn.Module):
    """RT-DETRv2's discrete sampling: the cell floor(location * size + 0.5), clamped to the map."""

    def __init__(self, points: Sequence[int]) -> None:
        super().__init__()
        self.points = tuple(points)

    def forward(self, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, heads, S, 2), weights (B, Q, heads, S) -> tokens int32 (B, Q, heads, S) and the weights."""
        axes, starts = _point_constants(sizes, self.points, locations)
        size = axes.to(locations.dtype)
        cell = torch.minimum((locations * size + 0.5).floor().clamp(min=0.0), size - 1.0).to(torch.int32)
        return cell[..., 1] * axes[:, 0] + cell[..., 0] + starts, weights


class CellSampler(nn.Module):
    """Sampling as one gather of rows and one matrix product, without GridSample; `cells` says which rows."""

    def __init__(self, cells: nn.Module) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor, sizes: LevelSizes) -> Tensor:
        """Value (B, T, heads, d), locations (B, Q, heads, S, 2), weights (B, Q, heads, S) -> (B, Q, heads * d)."""
        return _weighted_rows(value, *self.cells(locations, weights, sizes))


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


def _point_constants(sizes: LevelSizes, points: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Per sampling point: (width, height) of its level `(S, 2)` and the level's first token `(S,)`, int32."""
    axes, starts, start = [], [], 0
    for (height, width), count in zip(sizes, points, strict=True):
        axes += [[width, height]] * count
        starts += [start] * count
        start += height * width
    kind = {"dtype": torch.int32, "device": like.device}
    return torch.tensor(axes, **kind), torch.tensor(starts, **kind)  # type: ignore[arg-type]


def _weighted_rows(value: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum of `weights * value[token]` over the last axis of `rows` (B, Q, heads, N): `(B, Q, heads * d)`.

    All rows are fetched from one flat table with int32 indices: a single Gather of contiguous rows of d numbers.
    """
    tokens, heads, dim = int(value.shape[1]), int(value.shape[2]), int(value.shape[3])
    queries, count = int(rows.shape[1]), int(rows.shape[3])
    head = torch.arange(heads, dtype=torch.int32, device=value.device)[None, None, :, None]
    batch = torch.arange(value.shape[0], dtype=torch.int32, device=value.device)[:, None, None, None]
    flat = (batch * tokens + rows) * heads + head
    table = value.reshape(-1, dim)
    fetched = table.index_select(0, flat.reshape(-1)).reshape(-1, count, dim)
    mixed = weights.reshape(-1, 1, count) @ fetched
    return mixed.reshape(-1, queries, heads * dim)


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
