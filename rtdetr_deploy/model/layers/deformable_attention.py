"""Multi-scale deformable attention with three interchangeable samplers.

    query       (B, Q, D)
    reference   (B, Q, 4)      cxcywh in [0, 1]
    memory      (B, T, D)      tokens of all levels, level by level, row-major
    output      (B, Q, D)

offsets = Linear(query) -> (heads, S, 2); weights = softmax over the S points of all levels;
location = reference.xy + offset * reference.wh * 0.5 / points(level); pixel centres at (i + 0.5) / size, zero
outside the map (arXiv 2010.04159, equation 3; arXiv 2407.17140 for points per level and discrete sampling).
S = sum of the points of all levels. Parameter names follow the released checkpoints (strict=True).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtdetr_deploy.model.variants import DECODER_WIDTH, HEADS, Sampling

Shapes = Sequence[tuple[int, int]]
"""Height and width of each level."""

Sampler = Callable[[Tensor, Tensor, Tensor, Shapes, Sequence[int]], Tensor]
"""`(value (B, T, heads, d), locations (B, Q, heads, S, 2), weights (B, Q, heads, S), shapes, points) -> (B, Q, D)`."""


def sample_grid(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes, points: Sequence[int]) -> Tensor:
    """Bilinear sampling by `grid_sample`, one call per level: the definition, and GridSample in ONNX."""
    heads, dim = int(value.shape[2]), int(value.shape[3])
    queries = int(locations.shape[1])
    tokens, total = int(value.shape[1]), sum(points)
    maps = value.permute(0, 2, 3, 1).reshape(-1, dim, tokens)  # (B * heads, d, T)
    grids = (2.0 * locations - 1.0).transpose(1, 2).reshape(-1, queries, total, 2)  # (B * heads, Q, S, 2)
    samples = []
    for image, grid, (height, width) in zip(
        torch.split(maps, [height * width for height, width in shapes], dim=2),
        torch.split(grids, list(points), dim=2),
        shapes,
        strict=True,
    ):
        image = image.reshape(-1, dim, height, width)
        samples.append(functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(-1, 1, queries, total)
    mixed = (torch.cat(samples, dim=3) * weights).sum(dim=3)  # (B * heads, d, Q)
    return mixed.reshape(-1, heads * dim, queries).transpose(1, 2)


def sample_gather(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes, points: Sequence[int]) -> Tensor:
    """Sample bilinearly too, but as one gather of rows and one matrix product, without GridSample.

    The four neighbours of every point are fetched with clamped integer indices; a neighbour outside the map has
    weight zero. Bilinear and attention weights are multiplied first, so that `(1, 4 S) @ (4 S, d)` finishes the sum.
    """
    sizes, starts = _point_constants(shapes, points, locations)
    size, count = sizes.to(locations.dtype), sum(points)
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
    rows = y.unsqueeze(-1) * sizes[:, :1, None] + x.unsqueeze(-2) + starts[:, None, None]
    mix = share[..., 1, :].unsqueeze(-1) * share[..., 0, :].unsqueeze(-2) * weights[..., None, None]
    fetched = (-1, int(rows.shape[1]), int(rows.shape[2]), count * 4)
    return _weighted_rows(value, rows.reshape(fetched), mix.reshape(fetched))


def sample_discrete(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes, points: Sequence[int]) -> Tensor:
    """RT-DETRv2's discrete sampling: the cell floor(location * size + 0.5), clamped to the map."""
    sizes, starts = _point_constants(shapes, points, locations)
    size = sizes.to(locations.dtype)
    cell = torch.minimum((locations * size + 0.5).floor().clamp(min=0.0), size - 1.0).to(torch.int32)
    rows = cell[..., 1] * sizes[:, 0] + cell[..., 0] + starts
    return _weighted_rows(value, rows, weights)


def _point_constants(shapes: Shapes, points: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Per sampling point: (width, height) of its level `(S, 2)` and the level's first token `(S,)`, int32."""
    sizes, starts, start = [], [], 0
    for (height, width), count in zip(shapes, points, strict=True):
        sizes += [[width, height]] * count
        starts += [start] * count
        start += height * width
    kind = {"dtype": torch.int32, "device": like.device}
    return torch.tensor(sizes, **kind), torch.tensor(starts, **kind)  # type: ignore[arg-type]


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


SAMPLERS: dict[str, Sampler] = {"grid": sample_grid, "gather": sample_gather, "discrete": sample_discrete}


class DeformableAttention(nn.Module):
    """Each query reads a few learned locations around its reference box on every level."""

    def __init__(self, points: Sequence[int], sampling: Sampling, width: int = DECODER_WIDTH) -> None:
        super().__init__()
        total = sum(points)
        self.points = tuple(points)
        self.sampler = SAMPLERS["discrete" if sampling == "discrete" else "grid"]
        self.sampling_offsets = nn.Linear(width, HEADS * total * 2)
        self.attention_weights = nn.Linear(width, HEADS * total)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: Shapes) -> Tensor:
        total, queries = sum(self.points), int(query.shape[1])
        tokens, width = int(memory.shape[1]), int(memory.shape[2])
        value = self.value_proj(memory).reshape(-1, tokens, HEADS, width // HEADS)
        offsets = self.sampling_offsets(query).reshape(-1, queries, HEADS, total, 2)
        weights = self.attention_weights(query).reshape(-1, queries, HEADS, total).softmax(dim=-1)
        per_point = torch.tensor([[0.5 / n] for n in self.points for _ in range(n)], device=query.device)
        centre, size = reference.reshape(-1, queries, 1, 1, 4).chunk(2, dim=-1)
        locations = centre + offsets * (size * per_point.to(query))
        return self.output_proj(self.sampler(value, locations, weights, shapes, self.points))
