"""Kernels of the checks, compiled by NVRTC and launched through CUDA's driver: no other package is needed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from rtdetr_deploy.runtimes.trt.compile_kernel import compile_kernel
from rtdetr_deploy.runtimes.trt.cuda import Gpu, import_cuda

POINTER, INTEGER, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong


class Kernel:
    """A kernel of `source`, compiled for a GPU; the device must be current in the calling thread."""

    def __init__(self, gpu: Gpu, name: str, source: str, types: Sequence[type]) -> None:
        self._cuda, self._types = import_cuda(), tuple(types)
        self._module = self._cuda.call_driver("cuModuleLoadData", compile_kernel(source, name, gpu))
        self._kernel = self._cuda.call_driver("cuModuleGetFunction", self._module, name.encode())

    def launch(self, stream: int, grid: tuple[int, int], block: int, *values: int) -> None:
        """Queue the kernel for `grid` blocks of `block` threads in a row, with these arguments."""
        arguments = (values, self._types)
        self._cuda.call_driver("cuLaunchKernel", self._kernel, *grid, 1, block, 1, 1, 0, stream, arguments, 0)

    def close(self) -> None:
        """Unload the code."""
        if self._module is not None:
            self._cuda.call_driver("cuModuleUnload", self._module)
            self._module = None
