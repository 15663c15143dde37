"""Frames resized on the GPU: like OpenCV in any size, and what that costs beside resizing on the CPU."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpu_check.check import CheckFailedError, Figures, Situation, demand
from gpu_check.stub.tensorrt import open_stub, tensorrt_stub
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.preprocess import prepare_batch
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Event, Gpu, PinnedArray, Stream, import_cuda
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime

TARGETS = ((64, 96), (640, 640), (1, 8), (17, 33))
MAX_FRAME = (4320, 7680)
FRAMES = {"720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840)}
RUNS = 50
UNEQUAL = 0.05
"""Share of the values that may differ from OpenCV's, by one level, over all frames."""
WRONG = 3
"""The exit status that tells wrong pixels from what doesn't work under compute-sanitizer."""


def check_sizes(situation: Situation, cases: int = 300) -> Figures:
    """Frames of random sizes, orders of channels and strides are resized as OpenCV does it, to one level of 255."""
    rng = np.random.default_rng(0)
    worst, unequal, values = 0.0, 0, 0
    with tensorrt_stub(situation.gpu):
        for number, (height, width) in enumerate(TARGETS * 2):
            raw = number < len(TARGETS)
            runtime = open_stub(situation.gpu, height, width, raw=raw)
            try:
                for _ in range(-(-cases // (2 * len(TARGETS)))):
                    frame = random_frame(rng)
                    found = resize_on_gpu(runtime, [frame], height, width, raw)
                    expected = prepare_batch([frame], height, width, raw=raw)
                    levels = np.abs(found.astype(np.float64) - expected) * (1 if raw else 255)
                    demand(levels.max() <= 1.001, f"{frame.size} to {height}x{width}: {levels.max():.3f} levels off")
                    worst = max(worst, float(levels.max()))
                    unequal, values = unequal + int((levels > 0.5).sum()), values + levels.size
            finally:
                runtime.close()
    demand(unequal <= UNEQUAL * values, f"{unequal} of {values} values differ, more than {UNEQUAL:.1%}")
    return {"frames": cases, "worst_levels": worst, "unequal_share": unequal / values}


def random_frame(rng: np.random.Generator, limit: tuple[int, int] = MAX_FRAME) -> Frame:
    """Return a frame of noise, often small and seldom huge, now and then a view with other strides."""
    height, width = (int(np.exp(rng.uniform(0, np.log(size + 0.5)))) for size in limit)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    if rng.random() < 0.3 and min(height, width) > 1:
        pixels = pixels[::2, ::-1]
    return Frame(pixels, rgb=bool(rng.random() < 0.5))


def resize_on_gpu(
    runtime: TensorRtRuntime, frames: list[Frame], height: int, width: int, raw: bool
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return what reaches the engine when frames are resized on the GPU."""
    spec = PreprocessSpec.rtdetr((height, width), "uint8" if raw else "float32")
    prepare = runtime.preprocessor("images", "cuda", spec)
    pixels: NDArray[np.uint8] | NDArray[np.float32] = runtime.run({"images": prepare(frames, len(frames))})["pixels"]
    return pixels


def check_times(situation: Situation) -> Figures:
    """Time 720p, 1080p and 4K for a 640x640 engine, resized on the GPU and on the CPU, and what the bus takes."""
    figures: Figures = {}
    with tensorrt_stub(situation.gpu):
        runtime = open_stub(situation.gpu, 640, 640, raw=True)
        try:
            for name, size in FRAMES.items():
                pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
                figures[name] = {**_calls(runtime, pixels), **_bus(situation.cuda, pixels)}
        finally:
            runtime.close()
    return figures


def _calls(runtime: TensorRtRuntime, pixels: NDArray[np.uint8]) -> Figures:
    """Return milliseconds of whole calls, prepared by each resizer; the engine takes next to nothing of them."""
    frames = [Frame(pixels, rgb=False)]
    prepare = runtime.preprocessor("images", "cuda", PreprocessSpec.rtdetr((640, 640), "uint8"))
    return {
        "gpu_ms": median_ms(lambda: runtime.run({"images": prepare(frames, 1)})),
        "cpu_ms": median_ms(lambda: runtime.run({"images": prepare_batch(frames, 640, 640, raw=True)})),
        "cpu_resize_ms": median_ms(lambda: prepare_batch(frames, 640, 640, raw=True)),
    }


def _bus(cuda: Cuda, pixels: NDArray[np.uint8]) -> Figures:
    """Return milliseconds of the copy into pinned memory and of the copy to the GPU."""
    host = PinnedArray(cuda, pixels.shape, pixels.dtype)
    memory, stream, start, end = DeviceMemory(cuda, pixels.nbytes), Stream(cuda), Event(cuda), Event(cuda)

    def upload() -> float:
        start.record(stream)
        stream.upload(memory, host, pixels.nbytes)
        end.record(stream)
        stream.synchronize()
        return end.since(start)

    try:
        copied = median_ms(lambda: np.copyto(host.array, pixels))
        return {"pinned_copy_ms": copied, "upload_ms": statistics.median(upload() for _ in range(RUNS))}
    finally:
        for resource in (end, start, stream, memory, host):
            resource.close()


def median_ms(work: Callable[[], object], runs: int = RUNS) -> float:
    """Return the median milliseconds of a call, after three to warm up."""
    times = []
    for _ in range(runs + 3):
        start = time.perf_counter()
        work()
        times.append(1000.0 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def main(device: str) -> int:
    """Resize a few frames and nothing else, for compute-sanitizer; returns `WRONG` where the pixels are wrong."""
    from gpu_check.options import CheckOptions
    from rtdetr_deploy.runtimes.options import cpu_or_cuda

    cuda = import_cuda()
    gpu: Gpu = cuda.gpu(cpu_or_cuda(device, "CUDA")[1])
    cuda.call("cudaSetDevice", gpu.number)
    try:
        check_sizes(Situation(cuda, gpu, CheckOptions()), cases=24)
    except CheckFailedError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
