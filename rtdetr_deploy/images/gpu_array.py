"""Arrays of other libraries (torch, CuPy, PyCUDA, Numba ...), read by the two protocols that they share.

    DLPack                 `__dlpack__`, `__dlpack_device__`   of the CPU and of GPUs
    CUDA Array Interface   `__cuda_array_interface__`, 2 or 3  of NVIDIA GPUs

None of these libraries is imported. Where an array has both, DLPack is taken: it makes the reader's stream wait for the
work that the array's library has queued. The interface can't tell that: its version 2 (torch's) names no stream, and
version 3 says None in libraries that have queued work on the default stream (Numba's, PyCUDA's).

Sources: dmlc.github.io/dlpack/latest/python_spec.html; numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtdetr_deploy.errors import ImageError

INTERFACE = "__cuda_array_interface__"
LEGACY_DEFAULT_STREAM = 1
"""CUDA's default stream, by the number that both protocols give it."""

_HOST, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
"""Kinds of devices that DLPack names."""
_KINDS = "iuf"
"""NumPy's letters of DLPack's type codes 0, 1 and 2."""
_REFUSALS = (AssertionError, AttributeError, BufferError, LookupError, RuntimeError, TypeError, ValueError)
"""What libraries raise instead of telling where an array lies."""


class HasDlpack(Protocol):
    """An array that other libraries can read by DLPack."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Return the array as a capsule."""

    def __dlpack_device__(self) -> Any:
        """Return the kind of device and its number."""


class HasCudaInterface(Protocol):
    """An array on an NVIDIA GPU that other libraries can read."""

    @property
    def __cuda_array_interface__(self) -> Any:
        """The array's address, shape and type."""


@dataclass(frozen=True, eq=False)
class GpuArray:
    """An array on a GPU that belongs to somebody else: where it lies, and what must be waited for.

    `strides` are in bytes; `gpu` is the number of its GPU (None: not told); `stream` that of a CUDA stream whose work
    must be done first. `owner` keeps the memory alive. A runtime that takes the array sets
    `reader`, by which it knows its own, and `ready` to what its calls wait for.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    gpu: int | None
    stream: int
    owner: object = field(repr=False)
    reader: Any = field(default=None, repr=False)
    ready: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        """Rows of the first axis."""
        return self.shape[0]

    @property
    def is_contiguous(self) -> bool:
        """Whether it lies row by row without gaps; axes of one element may have any stride."""
        dense = _dense_strides(self.shape, self.dtype.itemsize)
        return all(
            size == 1 or found == wanted for size, found, wanted in zip(self.shape, self.strides, dense, strict=True)
        )


def is_third_party_array(thing: object) -> bool:
    """Tell whether `thing` is an array of a library other than NumPy."""
    return not isinstance(thing, (np.ndarray, np.generic)) and (_has_dlpack(thing) or _has_interface(thing))


def is_on_gpu(thing: object) -> bool:
    """Tell whether an array of another library lies on a GPU, or on any device but the CPU.

    False where its library names no device (torch's meta tensors): what reads it then says so.
    """
    try:
        return is_third_party_array(thing) and _device(thing)[0] not in (_HOST, _CUDA_HOST)
    except _REFUSALS:
        return False


def told_gpu(thing: object) -> int | None:
    """Return the number of the NVIDIA GPU on which DLPack says that an array lies; None where it doesn't say."""
    kind, number = _device(thing) if _has_dlpack(thing) else (None, 0)
    return number if kind in (_CUDA, _CUDA_MANAGED) else None


def as_host_array(thing: Any, what: str) -> NDArray[Any]:
    """Return an array of another library, in the CPU's memory, as NumPy's, without a copy.

    Raises `ImageError`, which speaks of it as `what`, where NumPy or its library refuses.
    """
    try:
        array: NDArray[Any] = np.from_dlpack(thing)
    except _REFUSALS as error:
        raise _unreadable(what, thing, error) from error
    return array


def read_gpu_array(thing: Any, stream: int, what: str) -> GpuArray:
    """Return where an array of another library lies, and which stream must be waited for before it is read.

    With DLPack that is `stream`: the library has made it wait for what it has queued for the array.
    Raises `ImageError`, which speaks of it as `what`, for arrays that CUDA can't read.
    """
    kind = _device(thing)[0]
    if kind not in (_CUDA, _CUDA_MANAGED):
        raise ImageError(f"{what} is not on an NVIDIA GPU (DLPack's device type {kind}); copy it to the CPU first")
    try:
        return _read_dlpack(thing, stream) if _has_dlpack(thing) else _read_interface(thing)
    except _REFUSALS as error:
        raise _unreadable(what, thing, error) from error


def refuse_gpu_array(what: str, runner: str) -> ImageError:
    """Return the error of an array on a GPU for a model that is run by `runner`, which reads the CPU's memory."""
    return ImageError(
        f"{what} is on a GPU, and {runner} reads the CPU's memory; copy it first: x.cpu() of torch, cupy.asnumpy(x), "
        "x.get() of PyCUDA (TensorRT engines read it where it is)"
    )


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DlTensor(ctypes.Structure):
    """DLPack's `DLTensor`, with which a `DLManagedTensor` begins."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _read_dlpack(thing: Any, stream: int) -> GpuArray:
    """Return what DLPack tells. The capsule stays unused and is kept: it frees the array when it is let go of."""
    capsule = thing.__dlpack__(stream=stream)
    tensor = DlTensor.from_address(_get_pointer(capsule, b"dltensor"))
    kind = tensor.dtype
    if kind.lanes != 1 or kind.code >= len(_KINDS):
        raise TypeError(f"its type (DLPack's code {kind.code}, {kind.bits} bits) is not one of NumPy's")
    dtype = np.dtype(f"{_KINDS[kind.code]}{kind.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = _dense_strides(shape, dtype.itemsize)
    if tensor.strides:
        strides = tuple(step * dtype.itemsize for step in tensor.strides[: tensor.ndim])
    address = (tensor.data or 0) + tensor.byte_offset
    return GpuArray(address, shape, strides, dtype, tensor.device.number, stream, (thing, capsule))


def _read_interface(thing: Any) -> GpuArray:
    """Return what the CUDA Array Interface tells; it doesn't tell the GPU."""
    interface: Mapping[str, Any] = getattr(thing, INTERFACE)
    version, stream = int(interface["version"]), interface.get("stream")
    if version < 2:
        raise ValueError(f"version {version} of its {INTERFACE} is too old, expected 2 or 3")
    if interface.get("mask") is not None:
        raise ValueError("it is masked, and masks are not used here")
    if stream == 0:
        raise ValueError(f"its {INTERFACE} has stream 0, which is ambiguous; expected None, 1, 2 or a handle")
    if stream is None:  # not told: work may be on the default stream, which waits for most others
        stream = LEGACY_DEFAULT_STREAM
    dtype, shape = np.dtype(interface["typestr"]), tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides") or _dense_strides(shape, dtype.itemsize)
    address = int(interface["data"][0] or 0)
    steps = tuple(int(step) for step in strides)
    return GpuArray(address, shape, steps, dtype, None, int(stream), (thing, interface))


def _dense_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the strides in bytes of an array that lies row by row."""
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _has_dlpack(thing: object) -> bool:
    return hasattr(type(thing), "__dlpack__") and hasattr(type(thing), "__dlpack_device__")


def _has_interface(thing: object) -> bool:
    try:
        return hasattr(thing, INTERFACE)
    except RuntimeError:  # torch's words about tensors that require a gradient: they are read, and refused, later
        return True


def _device(thing: Any) -> tuple[int, int]:
    """Return the kind of device of an array, by DLPack's numbers, and its number."""
    if not _has_dlpack(thing):
        return _CUDA, 0
    kind, number = thing.__dlpack_device__()
    return int(kind), int(number)


def _unreadable(what: str, thing: object, error: Exception) -> ImageError:
    words = " ".join(str(error).split()) or repr(error)
    return ImageError(f"{what} can't be read from {type(thing).__module__}.{type(thing).__name__}: {words}")
