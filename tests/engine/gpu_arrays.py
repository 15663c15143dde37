"""Arrays of other libraries on the double's GPU: DLPack and the CUDA Array Interface, without the libraries."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fake_cuda import FakeCuda
from rtdetr_deploy.images.gpu_array import DlTensor

CUDA, CUDA_HOST, ROCM = 2, 3, 10
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class GpuMemory:
    """A copy of an array on the GPU, with the array's own strides; freed by `free`."""

    def __init__(self, cuda: FakeCuda, array: NDArray[Any], gpu: int = 0) -> None:
        self.cuda, self.array, self.gpu = cuda, array, gpu
        self.offset = 0  # of the first element
        for size, step in zip(array.shape, array.strides, strict=True):
            self.offset -= min(0, step * (size - 1))
        last = self.offset + sum(
            max(0, step * (size - 1)) for size, step in zip(array.shape, array.strides, strict=True)
        )
        self._block = (ctypes.c_uint8 * (last + array.itemsize))()
        self.start = ctypes.addressof(self._block)
        cuda.device[self.start] = self._block
        cuda.gpus_of[self.start] = gpu
        self.write(array)

    @property
    def address(self) -> int:
        return self.start + self.offset

    def write(self, array: NDArray[Any]) -> None:
        """Fill it with other values of the same layout."""
        view = np.ndarray(array.shape, array.dtype, self._block, self.offset, self.array.strides)
        view[...] = array

    def free(self) -> None:
        del self.cuda.device[self.start]


class InterfaceArray:
    """What CuPy, Numba, PyCUDA (3) and torch (2) look like by the CUDA Array Interface.

    Version 3 has stream None, as PyCUDA's arrays always have it, and Numba's of the default stream.
    """

    def __init__(self, memory: GpuMemory, version: int = 3, **changes: Any) -> None:
        array = memory.array
        dense = array.flags.c_contiguous
        self.memory = memory
        self.interface = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (memory.address, True),
            "strides": None if dense else array.strides,
            "version": version,
            **({"stream": None} if version >= 3 else {}),
            **changes,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface


class DlpackArray:
    """What torch and CuPy look like by DLPack. `work` is done on the library's own stream, which a reader waits for.

    As torch's tensors it is exported only while its GPU is the current one.
    """

    def __init__(self, memory: GpuMemory, kind: int = CUDA, work: Callable[[], object] | None = None) -> None:
        self.memory, self.kind = memory, kind
        self.asked: list[int | None] = []
        self.shape = memory.array.shape
        self.code: Sequence[int] = ("iuf".index(memory.array.dtype.kind), 8 * memory.array.itemsize, 1)
        self._work = work

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.memory.gpu

    def __dlpack__(self, *, stream: int | None = None) -> object:
        self.asked.append(stream)
        if self.memory.gpu != self.memory.cuda.current:
            raise BufferError("Can't export tensors on a different CUDA device index.")
        if self._work is not None:
            assert stream is not None
            assert self.memory.cuda.enqueue(stream, self._work)
        array = self.memory.array
        count = array.ndim
        tensor = DlTensor()
        tensor.data = self.memory.start
        tensor.byte_offset = self.memory.offset
        tensor.device.kind, tensor.device.number = self.kind, self.memory.gpu
        tensor.ndim = count
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = self.code
        tensor.shape = (ctypes.c_int64 * count)(*array.shape)
        if not array.flags.c_contiguous:  # left out, as older libraries do
            tensor.strides = (ctypes.c_int64 * count)(*(step // array.itemsize for step in array.strides))
        self._tensor = tensor
        return _new_capsule(ctypes.addressof(tensor), b"dltensor", None)


class HostArray:
    """An array of another library in the CPU's memory; NumPy's own capsules stand for its."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape = array, array.shape

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = None, **asked: Any) -> Any:
        return self.array.__dlpack__(stream=stream, **asked)
