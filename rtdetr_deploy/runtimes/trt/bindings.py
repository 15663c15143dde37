"""Inputs and outputs of TensorRT engines: what they are, and their memory on both sides of the bus."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rtdetr_deploy.errors import ArtifactError, OptionError
from rtdetr_deploy.runtimes.protocol import TensorSpec
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, PinnedArray
from rtdetr_deploy.runtimes.trt.cuda_resize import ResizeDestination

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Binding:
    """An input or output of the engine, with room for the maximum batch on both sides of the bus."""

    name: str
    host: PinnedArray
    device: DeviceMemory

    def size(self, batch: int) -> int:
        """Bytes of the first `batch` rows."""
        return batch * int(self.host.array[:1].nbytes)


def check_bindings(engine: trt.ICudaEngine, file: str) -> None:
    """Raise `ArtifactError` unless every input and output is a plain array on the GPU, as here everything is."""
    import tensorrt as trt

    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise ArtifactError(f"{file}: {name} is a shape that TensorRT reads on the CPU; only images are fed here")
        layout = engine.get_tensor_format(name)
        if layout != trt.TensorFormat.LINEAR or engine.get_tensor_vectorized_dim(name) >= 0:
            raise ArtifactError(
                f"{file}: {name} has the format {layout.name}, expected LINEAR; build the engine without other formats "
                "of inputs and outputs"
            )


def allocate_bindings(
    engine: trt.ICudaEngine, mode: trt.TensorIOMode, file: str, max_batch: int, cuda: Cuda, stack: ExitStack
) -> tuple[tuple[TensorSpec, ...], tuple[Binding, ...]]:
    """Return the engine's inputs or outputs, with memory for batches up to `max_batch`, which `stack` frees."""
    specs, bindings = [], []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) != mode:
            continue
        dims = engine.get_tensor_shape(name)
        shape = tuple(int(dims[axis]) for axis in range(len(dims)))
        dtype = numpy_type(engine.get_tensor_dtype(name), name)
        if not shape or any(axis < 0 for axis in shape[1:]):
            raise ArtifactError(f"{file}: {name} has open axes {shape}; only the batch may be dynamic")
        host = PinnedArray(cuda, (max_batch, *shape[1:]), dtype)
        stack.callback(host.close)
        device = DeviceMemory(cuda, int(host.array.nbytes))
        stack.callback(device.close)
        specs.append(TensorSpec(name, dtype, (None if shape[0] < 0 else shape[0], *shape[1:])))
        bindings.append(Binding(name, host, device))
    return tuple(specs), tuple(bindings)


def numpy_type(kind: trt.DataType, name: str) -> np.dtype[Any]:
    """Return NumPy's type for TensorRT's. Raises `ArtifactError` where NumPy has none."""
    import tensorrt as trt

    try:
        dtype: np.dtype[Any] = np.dtype(trt.nptype(kind))
    except TypeError as error:  # BF16 and FP8 have none
        raise ArtifactError(f"{name} is {kind}, which NumPy has no type for") from error
    return dtype


def batch_range(engine: trt.ICudaEngine, name: str) -> tuple[int, int]:
    """Return the minimum and maximum batch of the first optimization profile."""
    import tensorrt as trt

    ranges = []
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT:
            low, _, high = engine.get_tensor_profile_shape(tensor, 0)
            ranges.append((int(low[0]), int(high[0])))
    if not ranges:
        raise ArtifactError(f"{name} has no inputs")
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def resize_destination(binding: Binding, file: str) -> ResizeDestination:
    """Return an input as what frames are resized into. Raises `OptionError` for inputs that are not images."""
    shape, dtype = binding.host.array.shape, binding.host.array.dtype
    if len(shape) == 4 and shape[3] == 3 and dtype == np.uint8:
        return ResizeDestination(binding.device, shape[1], shape[2], is_uint8=True)
    if len(shape) == 4 and shape[1] == 3 and dtype == np.float32:
        return ResizeDestination(binding.device, shape[2], shape[3], is_uint8=False)
    raise OptionError(f'`resizer="cuda"` writes float32 planes or uint8 pixels; {file} takes {dtype}{shape[1:]}')
