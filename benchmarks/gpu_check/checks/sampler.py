"""What the forms of the sampler cost: five of them, under CUDA graphs, at one image and at eight."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from gpu_check.check import Figures, Situation, demand
from gpu_check.checks.arrays import require_torch
from gpu_check.stub.kernels import Kernel

T4_BYTES = 240e9
"""Bytes per second that a T4 moves in practice, of 320e9."""
CLOSE = 4e-3
"""Share of the largest result that a form may be off float64: FP16 rounds each of 48 products."""
REPLAYS = 20


def check_sampler(situation: Situation) -> Figures:
    """Five forms of gathering and summing: right, the first two equal to the bit, timed; bytes give a T4's estimate."""
    torch = require_torch()
    from gpu_check import sampler_forms as forms

    device = torch.device("cuda", situation.gpu.number)
    figures: Figures = {}
    with torch.cuda.device(device), torch.no_grad():
        kernel = Kernel(situation.gpu, "gather_sum", forms.FUSED, forms.FUSED_TYPES)
        for batch in (1, 8):
            sampling = forms.make_sampling(batch, device)
            expected, results = forms.reference(sampling), {}
            for name, form in (*forms.FORMS.items(), (forms.FUSED_FORM, lambda given: fused(torch, kernel, given))):
                milliseconds, results[name] = time_graph(torch, lambda: form(sampling))  # noqa: B023 (called at once)
                loose = 10 if "grid" in name else 1  # its weights were not rounded to FP16
                error = float((results[name].double() - expected).abs().max() / expected.abs().max())
                demand(error <= loose * CLOSE, f"{name}, batch {batch}: off by {error:.2g} of the largest result")
                size = forms.traffic(name, sampling)
                figures[f"{name}, batch {batch}"] = {
                    "ms": milliseconds, "GB_per_s": size / milliseconds / 1e6, "MB": size / 1e6,
                    "t4_estimate_ms": 1000 * size / T4_BYTES, "error": error,
                }  # fmt: skip
            first, second = list(results.values())[:2]
            demand(torch.equal(first, second), f"batch {batch}: gathering in FP32 and in FP16 differ")
        kernel.close()
    return figures


def fused(torch: Any, kernel: Kernel, sampling: Any) -> Any:
    """Return the result of the kernel, queued on torch's current stream."""
    from gpu_check.sampler_forms import DIM, FUSED_BLOCK

    shape = (*sampling.rows.shape[:3], DIM)
    result = torch.empty(shape, dtype=torch.float32, device=sampling.value.device)
    pointers = [part.data_ptr() for part in (sampling.value, sampling.rows, sampling.weights, result)]
    grid = (-(-result.numel() // FUSED_BLOCK), 1)
    stream = torch.cuda.current_stream().cuda_stream
    kernel.launch(stream, grid, FUSED_BLOCK, *pointers, result.numel() // DIM, sampling.count)
    return result


def time_graph(torch: Any, work: Callable[[], Any], replays: int = REPLAYS) -> tuple[float, Any]:
    """Record `work` as a CUDA graph; return the median milliseconds of a replay, and what it computed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    times = []
    for _ in range(replays + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:]), result.clone()
