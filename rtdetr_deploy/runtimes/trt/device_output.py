"""Outputs that stay on the GPU: memory of their own, which other libraries read by the CUDA Array Interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rtdetr_deploy.images.gpu_array import LEGACY_DEFAULT_STREAM
from rtdetr_deploy.runtimes.feed import closed
from rtdetr_deploy.runtimes.protocol import Array
from rtdetr_deploy.runtimes.trt.bindings import Binding
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Event, Stream
from rtdetr_deploy.runtimes.trt.pool import Pool
from rtdetr_deploy.runtimes.trt.resources import Resources

ALIGNMENT = 256
"""Bytes; as cudaMalloc aligns."""


class OutputBlock:
    """The outputs of one call in one block, which goes back to the pool with the last reference to any of them."""

    def __init__(self, pool: Pool[DeviceMemory], file: str, cuda: Cuda, resources: Resources) -> None:
        self.memory = pool.take()
        pool.lend(self.memory, self)
        self._file, self._cuda, self._resources = file, cuda, resources

    @property
    def address(self) -> int:
        """Where the block begins. Raises `ArtifactError` when the engine was closed, and it is gone."""
        if not self.memory.address:
            raise closed(self._file)
        return self.memory.address

    def read(self, array: Array, offset: int) -> None:
        """Fill an array with what lies `offset` bytes from the start: a call of the engine, as others are.

        Raises `ArtifactError` when the engine was closed, `DeviceError` in another process.
        """
        with self._resources.in_use():
            self._cuda.read(array, self.address + offset)


class EngineOutput:
    """See `DeviceOutput`: an array in row order, `offset` bytes from the start of a block."""

    def __init__(self, block: OutputBlock, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._block, self._offset = block, offset
        self.shape, self.dtype = shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._block.address + self._offset, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an output on the GPU can't be had on the CPU without a copy")
        array: Array = np.empty(self.shape, self.dtype)
        self._block.read(array, self._offset)
        return array if dtype is None else array.astype(dtype, copy=False)


def block_size(outputs: Sequence[Binding], rows: int) -> int:
    """Return the bytes that `rows` rows of the outputs take."""
    return sum(_aligned(binding.size(rows)) for binding in outputs)


def copy_outputs(outputs: Sequence[Binding], rows: int, block: OutputBlock, stream: Stream) -> dict[str, EngineOutput]:
    """Queue copies of the outputs into a block, and return them by name."""
    copied, offset = {}, 0
    for binding in outputs:
        size = binding.size(rows)
        stream.copy(block.address + offset, binding.device.address, size)
        shape, dtype = (rows, *binding.host.array.shape[1:]), binding.host.array.dtype
        copied[binding.name] = EngineOutput(block, offset, shape, dtype)
        offset += _aligned(size)
    return copied


def wait_for_readers(stream: Stream, events: Pool[Event]) -> None:
    """Let a stream wait for what the default stream does now: a former reader of a block may not be done yet."""
    event = events.take()
    try:
        event.record(LEGACY_DEFAULT_STREAM)
        stream.wait(event)
    finally:
        events.give(event)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
