"""Milliseconds of an ONNX model on a GPU: a lower bound, and an estimate with fitted factors.

Each kernel (see `fusion`) takes at least the longer of two times: its FLOPs at the peak rate of their precision, and
its bytes at the peak bandwidth. The estimate divides these by the shares of the peaks that are reached, and adds what
a kernel costs whatever it does.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from rtdetr_bench.roofline.factors import IDEAL, Factors, fitted_factors
from rtdetr_bench.roofline.fusion import Kernel, fuse
from rtdetr_bench.roofline.gpus import Gpu
from rtdetr_bench.roofline.graph import Graph, read_graph


@dataclass(frozen=True)
class Timed:
    """A kernel, the milliseconds that it takes at least, and those that it is estimated to take."""

    kernel: Kernel
    bound: float
    estimate: float


@dataclass(frozen=True)
class Estimate:
    """A graph's kernels with their times on a `gpu`, in the order of the graph."""

    gpu: Gpu
    graph: Graph
    timed: tuple[Timed, ...]

    @property
    def bound(self) -> float:
        """Milliseconds that the graph takes at least."""
        return sum(item.bound for item in self.timed)

    @property
    def milliseconds(self) -> float:
        """Milliseconds that the graph is estimated to take."""
        return sum(item.estimate for item in self.timed)


def estimate(model: ModelProto, gpu: Gpu, batch: int | None = None, factors: Factors | None = None) -> Estimate:
    """Return what `model` costs on `gpu` for `batch` images (None: what the file fixes, else 1).

    `factors` None are those that were fitted on a T4. Raises what `read_graph` does.
    """
    return estimate_graph(read_graph(model, batch), gpu, factors or fitted_factors())


def estimate_graph(graph: Graph, gpu: Gpu, factors: Factors) -> Estimate:
    """Return what `graph` costs on `gpu`."""
    timed = (Timed(kernel, time_of(kernel, gpu, IDEAL), time_of(kernel, gpu, factors)) for kernel in fuse(graph))
    return Estimate(gpu, graph, tuple(timed))


def time_of(kernel: Kernel, gpu: Gpu, factors: Factors) -> float:
    """Return the milliseconds of `kernel`."""
    busy = max(compute_time(kernel, gpu) / factors.compute, memory_time(kernel, gpu) / factors.bandwidth)
    return busy + factors.launch / 1e3


def compute_time(kernel: Kernel, gpu: Gpu) -> float:
    """Return the milliseconds of a kernel's FLOPs at the peak rates."""
    return sum(float(flops / (getattr(gpu, unit) * 1e9)) for unit, flops in kernel.flops.items())


def memory_time(kernel: Kernel, gpu: Gpu) -> float:
    """Return the milliseconds of a kernel's bytes at the peak bandwidth."""
    return (kernel.read + kernel.written) / (gpu.bandwidth * 1e6)
