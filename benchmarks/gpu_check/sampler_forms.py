"""Five ways to compute what deformable attention reads: rows of a table of values, weighted and summed.

value     (B, T, heads, d)       FP16
rows      (B, Q, heads, N)       int32, the row of the flat table (B T heads, d) that is read
weights   (B, Q, heads, N)       FP16, bilinear and attention weights multiplied
result    (B, Q, heads, d)       N = 4 x points: the four cells of each
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_check.stub.kernels import INTEGER, POINTER
from rtdetr_deploy.model.layers.deformable_attention import GridSampler

LEVELS = ((80, 80), (40, 40), (20, 20))
POINTS = (4, 4, 4)
QUERIES, HEADS, DIM = 300, 8, 32
FUSED_TYPES = (POINTER, POINTER, POINTER, POINTER, INTEGER, INTEGER)
FUSED_BLOCK = 256
FUSED = r"""
static __device__ inline float to_float(unsigned short half)
{
#ifdef __CUDACC_RTC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    int exponent = (half >> 10) & 31, part = half & 1023;
    float size = exponent ? ldexpf((float)(part + 1024), exponent - 25) : ldexpf((float)part, -24);
    return half & 0x8000 ? -size : size;
#endif
}

// One thread per number of the result: 32 of them read a row together.
extern "C" __global__ void gather_sum(const unsigned short* value, const int* rows, const unsigned short* weights,
                                      float* result, int results, int count)
{
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= results * 32)
        return;
    int to = index / 32, lane = index % 32;
    const int* read = rows + (size_t)to * count;
    float sum = 0.0f;
    for (int n = 0; n < count; ++n)
        sum += to_float(weights[(size_t)to * count + n]) * to_float(value[(size_t)read[n] * 32 + lane]);
    result[index] = sum;
}
"""


@dataclass(frozen=True)
class Sampling:
    """What all forms are given; rows and weights were made of `locations` (B, Q, heads, S, 2) and `attention`."""

    value: Tensor
    rows: Tensor
    weights: Tensor
    locations: Tensor
    attention: Tensor
    levels: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Rows that are read for each result."""
        return int(self.rows.shape[-1])


def make_sampling(
    batch: int, device: str | torch.device, levels: tuple[tuple[int, int], ...] = LEVELS, queries: int = QUERIES
) -> Sampling:
    """Return random values, read around random places, inside the maps and a little outside."""
    generator = torch.Generator().manual_seed(batch)
    tokens, points = sum(height * width for height, width in levels), sum(POINTS)
    value = torch.randn((batch, tokens, HEADS, DIM), generator=generator).half()
    centre = torch.rand((batch, queries, 1, 1, 2), generator=generator)
    locations = centre + 0.1 * torch.randn((batch, queries, HEADS, points, 2), generator=generator)
    attention = torch.randn((batch, queries, HEADS, points), generator=generator).softmax(-1)
    cells, weights = bilinear_cells(locations, attention, levels)
    head = torch.arange(HEADS, dtype=torch.int32)[None, None, :, None]
    image = torch.arange(batch, dtype=torch.int32)[:, None, None, None]
    rows = (image * tokens + cells) * HEADS + head
    parts = (value, rows.to(torch.int32), weights.half(), locations, attention)
    value, rows, weights, locations, attention = (part.contiguous().to(device) for part in parts)
    return Sampling(value, rows, weights, locations, attention, levels)


def bilinear_cells(locations: Tensor, attention: Tensor, levels: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Return the tokens of the four cells around each location, and their weights, zero outside the map.

    A definition of its own: what the model's sampler does is measured, not what it returns.
    """
    tokens, weights, start = [], [], 0
    places, shares = locations.split(POINTS, dim=3), attention.split(POINTS, dim=3)  # type: ignore[no-untyped-call]
    for (height, width), place, share in zip(levels, places, shares, strict=True):
        position = place * place.new_tensor([width, height]) - 0.5
        for side in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]):
            corner = position.floor() + position.new_tensor(side)
            limit = corner.new_tensor([width - 1.0, height - 1.0])
            inside = corner.clamp(min=0.0).minimum(limit)
            near = (1.0 - (position - corner).abs()).prod(-1) * (inside == corner).all(-1)
            tokens.append((start + inside[..., 1] * width + inside[..., 0]).to(torch.int32))
            weights.append(near * share)
        start += height * width
    return torch.cat(tokens, -1), torch.cat(weights, -1)


def _flat(sampling: Sampling, table: Tensor) -> Tensor:
    return table.reshape(-1, DIM).index_select(0, sampling.rows.reshape(-1)).reshape(-1, sampling.count, DIM)


def _shaped(sampling: Sampling, mixed: Tensor) -> Tensor:
    return mixed.reshape(*sampling.rows.shape[:3], DIM)


def gather_fp32(sampling: Sampling) -> Tensor:
    """Cast the whole table up, gather in FP32, cast what was read down: version 0.1's FP16 files."""
    fetched = _flat(sampling, sampling.value.float()).half()
    return _shaped(sampling, sampling.weights.reshape(-1, 1, sampling.count) @ fetched)


def gather_matmul(sampling: Sampling) -> Tensor:
    """Gather in FP16, and sum by a matrix product of one row."""
    fetched = _flat(sampling, sampling.value)
    return _shaped(sampling, sampling.weights.reshape(-1, 1, sampling.count) @ fetched)


def gather_multiply_sum(sampling: Sampling) -> Tensor:
    """Gather in FP16, multiply and sum, which a compiler can fuse."""
    fetched = _flat(sampling, sampling.value)
    return _shaped(sampling, (sampling.weights.reshape(-1, sampling.count, 1) * fetched).sum(1))


def grid_sample(sampling: Sampling) -> Tensor:
    """Torch's grid_sample in FP32, whose coordinates FP16 would move."""
    sample = GridSampler(POINTS)
    mixed = sample(sampling.value.float(), sampling.locations, sampling.attention, sampling.levels)
    return _shaped(sampling, mixed).half()


FORMS: Mapping[str, Callable[[Sampling], Tensor]] = {
    "gather in FP32 with casts": gather_fp32,
    "gather in FP16, matrix product": gather_matmul,
    "gather in FP16, multiply and sum": gather_multiply_sum,
    "grid_sample in FP32": grid_sample,
}
"""The forms that torch computes; the fifth is the kernel `FUSED`."""
FUSED_FORM = "fused kernel"


def traffic(form: str, sampling: Sampling) -> int:
    """Return the bytes that a form moves, each of its steps reading its inputs and writing its result once."""
    table, rows = sampling.value.numel(), sampling.rows.numel()
    fetched, result = rows * DIM, math.prod(sampling.rows.shape[:3]) * DIM
    steps = {
        "gather in FP32 with casts": 6 * table + 8 * fetched + 6 * fetched + 2 * fetched,
        "gather in FP16, matrix product": 4 * fetched + 2 * fetched,
        "gather in FP16, multiply and sum": 4 * fetched + 4 * fetched + 2 * fetched,
        "grid_sample in FP32": 6 * table + 4 * fetched + (4 + 4 + 4 + 4) * (fetched // 4),
        FUSED_FORM: 2 * fetched,
    }
    index = 6 * rows if form != "grid_sample in FP32" else 3 * rows  # index and weight | x, y and weight of a point
    return steps[form] + index + 2 * result


def reference(sampling: Sampling) -> Tensor:
    """Return the sum in float64, of the FP16 values and weights."""
    fetched = _flat(sampling, sampling.value.double())
    return _shaped(sampling, (sampling.weights.double().reshape(-1, sampling.count, 1) * fetched).sum(1))
