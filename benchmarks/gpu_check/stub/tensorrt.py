"""The tests' double of `tensorrt`, with contexts that launch a real kernel on the stream they are given.

The double holds callers to TensorRT's contract (addresses, shapes, working memory); memory, streams, events and CUDA
graphs are the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import fake_tensorrt
from gpu_check.stub.detector import BLOCK, SOURCE, TYPES, make_detector
from gpu_check.stub.kernels import LONG, Kernel
from rtdetr_deploy.runtimes import RuntimeOptions, open_runtime
from rtdetr_deploy.runtimes.trt.cuda import Gpu
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime

MAX_BATCH = 8
SPIN = r"""
extern "C" __global__ void spin(long long nanoseconds)
{
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    while (now - start < nanoseconds);
}
"""


class Launcher:
    """What engines of the stub run: the detector's kernel, behind one that takes `milliseconds` where these are set.

    `on_execute` is called each time before anything is queued, also while that is recorded.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._detect = Kernel(gpu, "detect", SOURCE, TYPES)
        self._spin: Kernel | None = None
        self.milliseconds = 0.0
        self.on_execute: Callable[[], None] = lambda: None

    def run(self, stream: int, batch: int, numbers: int, is_uint8: bool, addresses: dict[str, int]) -> None:
        """Queue a call of the detector."""
        self.on_execute()
        if self.milliseconds:
            if self._spin is None:
                self._spin = Kernel(self._gpu, "spin", SPIN, (LONG,))
            self._spin.launch(stream, (1, 1), 1, int(self.milliseconds * 1e6))
        pointers = [addresses[name] for name in ("images", "pixels", "scores", "labels", "boxes")]
        self._detect.launch(stream, (-(-numbers // BLOCK), batch), BLOCK, *pointers, numbers, int(is_uint8))

    def close(self) -> None:
        """Unload the kernels."""
        for kernel in (self._detect, self._spin):
            if kernel is not None:
                kernel.close()


def _context_class(launcher: Launcher) -> type[fake_tensorrt.IExecutionContext]:
    class GpuContext(fake_tensorrt.IExecutionContext):
        def set_device_memory(self, memory: int, size: int) -> None:
            self._own_memory = memory != 0 and size >= fake_tensorrt.WORKSPACE

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return name in self.engine._names and memory != 0

        def execute_async_v3(self, stream_handle: int) -> bool:
            if not self._own_memory or set(self._addresses) != set(self.engine._names) or "images" not in self._shapes:
                fake_tensorrt.WORLD.say(fake_tensorrt.ILogger.ERROR, "API Usage Error (not everything is set)")
                return False
            batch, *shape = self._shapes["images"]
            is_uint8 = self.engine.get_tensor_dtype("images") == fake_tensorrt.DataType.UINT8
            launcher.run(stream_handle, batch, shape[0] * shape[1] * shape[2], is_uint8, self._addresses)
            return True

    return GpuContext


@contextmanager
def tensorrt_stub(gpu: Gpu) -> Iterator[Launcher]:
    """Let `import tensorrt` find the stub within the block; batches go up to `MAX_BATCH`."""
    launcher = Launcher(gpu)
    context, profile, installed = (
        fake_tensorrt.IExecutionContext,
        fake_tensorrt.WORLD.profile,
        sys.modules.get("tensorrt"),
    )
    fake_tensorrt.IExecutionContext = _context_class(launcher)  # type: ignore[misc]
    fake_tensorrt.WORLD.profile = (1, 1, MAX_BATCH)
    sys.modules["tensorrt"] = fake_tensorrt
    try:
        yield launcher
    finally:
        fake_tensorrt.IExecutionContext, fake_tensorrt.WORLD.profile = context, profile  # type: ignore[misc]
        del sys.modules["tensorrt"]
        if installed is not None:
            sys.modules["tensorrt"] = installed
        launcher.close()


def open_stub(gpu: Gpu, height: int = 64, width: int = 96, *, raw: bool = True) -> TensorRtRuntime:
    """Open the detector as an engine of the stub on `gpu`."""
    content = fake_tensorrt.MAGIC + make_detector(height, width, raw=raw)
    runtime = open_runtime(content, "tensorrt", RuntimeOptions(device=f"cuda:{gpu.number}"))
    assert isinstance(runtime, TensorRtRuntime)
    return runtime
