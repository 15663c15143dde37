"""What Casts and FP32 islands of a graph cost: each module's time, beside its time in the same graph in FP16."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from rtdetr_bench.roofline.estimate import Estimate, estimate_graph
from rtdetr_bench.roofline.everywhere import HALF, in_fp16, is_cast_between_floats, is_postprocessing
from rtdetr_bench.roofline.factors import Factors
from rtdetr_bench.roofline.model_parts import module_of

NOTHING = 5e-4
"""Milliseconds below which a difference is not worth a row."""


@dataclass(frozen=True)
class Island:
    """A module (alike ones together: `decoder/layers.*/norm1`) with FP32 or Casts in it.

    `milliseconds` now and in FP16; `casts` between floats that it holds; `fp32`: whether it computes in FP32.
    """

    module: str
    milliseconds: float
    in_fp16: float
    casts: int
    fp32: bool

    @property
    def cost(self) -> float:
        """Milliseconds more than in FP16."""
        return self.milliseconds - self.in_fp16


@dataclass(frozen=True)
class PrecisionCost:
    """Milliseconds of the same graph in FP16, the islands, the costly ones first, and the Casts.

    `single`: all floats are FP32, and nothing in it is an island. `cast_kernels` of the `casts` run as kernels of their
    own or begin one, which take `cast_milliseconds` together.
    """

    in_fp16: float
    single: bool
    islands: tuple[Island, ...]
    casts: int
    cast_kernels: int
    cast_milliseconds: float


def measure_precision(now: Estimate, factors: Factors) -> PrecisionCost:
    """Return what the precision of the graph of `now` costs against the same graph in FP16, on the same GPU.

    There the postprocessing stays as it is, where names tell which operations that is: scores of detections that are
    alike, and boxes on large images, need FP32.
    """
    fast = estimate_graph(in_fp16(now.graph, is_postprocessing), now.gpu, factors)
    times, in_half = _by_module(now), _by_module(fast)
    values = {value for item in now.graph.operations for value in (*item.inputs, *item.outputs)}
    kinds = {value.kind for value in values}
    if not kinds & HALF:
        return PrecisionCost(fast.milliseconds, "float32" in kinds, (), 0, 0, 0.0)
    casts: dict[str, int] = defaultdict(int)
    single: set[str] = set()
    for item in now.timed:
        module = module_of(item.kernel)
        casts[module] += sum(map(is_cast_between_floats, item.kernel.operations))
        if any(value.kind == "float32" for one in item.kernel.operations for value in (*one.inputs, *one.outputs)):
            single.add(module)
    found = (
        Island(module, time, in_half.get(module, 0.0), casts[module], module in single)
        for module, time in times.items()
        if casts[module] or module in single
    )
    alone = [item for item in now.timed if is_cast_between_floats(item.kernel.operations[0])]
    return PrecisionCost(
        fast.milliseconds,
        False,
        tuple(sorted((one for one in found if abs(one.cost) > NOTHING), key=lambda one: -one.cost)),
        sum(casts.values()),
        len(alone),
        sum(item.estimate for item in alone),
    )


def _by_module(estimate: Estimate) -> dict[str, float]:
    times: dict[str, float] = defaultdict(float)
    for item in estimate.timed:
        times[module_of(item.kernel)] += item.estimate
    return times
