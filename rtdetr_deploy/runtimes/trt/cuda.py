"""The few calls of the CUDA runtime that are needed here, through cuda-python.

Every failure is a `DeviceError` in CUDA's own words. Resources have `close`, which may be called twice; their owner
frees them in order (`resources.py`), the garbage collector would not.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtdetr_deploy.errors import DeviceError
from rtdetr_deploy.packages import needed_for
from rtdetr_deploy.runtimes.protocol import Array
from rtdetr_deploy.runtimes.trt.supported import fit_driver, package_extras, update_driver
from rtdetr_deploy.words import plural


@dataclass(frozen=True)
class Gpu:
    """The device that is used: its number, name, compute capability ("7.5" for a T4) and memory in bytes."""

    number: int
    name: str
    capability: str
    memory: int


class Cuda:
    """The CUDA runtime. `module` is `cuda.bindings.runtime`, or a double of it."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._contexts: dict[int, Any] = {}
        self._retaining = threading.RLock()  # a signal handler may come between

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function and return what it returns beside the status. Raises `DeviceError`."""
        status, *values = getattr(self._module, function)(*arguments)
        if status != self._module.cudaError_t.cudaSuccess:
            _, text = self._module.cudaGetErrorString(status)
            words = text.decode() if isinstance(text, bytes) else str(text)
            out_of_memory = status == self._module.cudaError_t.cudaErrorMemoryAllocation
            hint = "; close other programs on the GPU, or use a smaller batch" if out_of_memory else ""
            raise DeviceError(f"CUDA says: {words} ({function}){hint}")
        return values[0] if len(values) == 1 else tuple(values) if values else None

    def forget_error(self) -> None:
        """Clear the error that CUDA remembers for this thread: whoever asks next would take it for its own."""
        self._module.cudaGetLastError()

    def call_driver(self, function: str, *arguments: Any) -> Any:
        """Call a function of the driver and return what it returns beside the status. Raises `DeviceError`."""
        from cuda.bindings import driver

        status, *values = getattr(driver, function)(*arguments)
        if int(status) != 0:
            too_old = status.name == "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
            hint = f"; the driver is older than the compiler (NVRTC): {update_driver()}" if too_old else ""
            raise DeviceError(f"CUDA's driver says: {status.name} ({function}){hint}")
        return values[0] if values else None

    def constant(self, kind: str, name: str) -> Any:
        """Return a member of an enumeration, e.g. `cudaMemcpyKind.cudaMemcpyHostToDevice`."""
        return getattr(getattr(self._module, kind), name)

    def flag(self, name: str) -> int:
        """Return a plain constant, e.g. `cudaStreamNonBlocking`."""
        return int(getattr(self._module, name))

    def gpu(self, number: int | None = None) -> Gpu:
        """Describe the GPU of this number, or else the current one. Raises `DeviceError` where there is none."""
        try:
            count = self.call("cudaGetDeviceCount")
        except DeviceError as error:
            raise DeviceError(
                f"no NVIDIA GPU can be used: {error}; is the driver installed? Packages for CUDA 13 need driver 580 or "
                f"later: {fit_driver()}"
            ) from error
        if count < 1:
            raise DeviceError("no NVIDIA GPU can be used: CUDA finds none")
        if number is not None and number >= count:
            raise DeviceError(f"GPU {number} can't be used: CUDA finds {plural(count, 'GPU')}, counted from 0")
        number = int(self.call("cudaGetDevice")) if number is None else number
        properties = self.call("cudaGetDeviceProperties", number)
        name = properties.name
        return Gpu(
            number,
            name.decode().rstrip("\0") if isinstance(name, bytes) else str(name),
            f"{properties.major}.{properties.minor}",
            int(properties.totalGlobalMem),
        )

    @contextmanager
    def using(self, gpu: Gpu) -> Iterator[None]:
        """Make `gpu` the current device of the calling thread, and what was current before again after the block.

        By the driver's stack of contexts: cudaSetDevice would take hundreds of MB of the caller's GPU when it is set
        back, also where nobody uses that one, and lose a context that is not the device's own (PyCUDA's).
        """
        context = self._primary_context(gpu)
        if native_handle(self.call_driver("cuCtxGetCurrent")) == native_handle(context):
            yield
            return
        self.call_driver("cuCtxPushCurrent", context)
        try:
            yield
        finally:
            self.call_driver("cuCtxPopCurrent")

    def gpu_of(self, address: int) -> int | None:
        """Return the number of the GPU whose memory holds `address`; None where no GPU's does."""
        attributes = self.call("cudaPointerGetAttributes", address)
        kinds = ("cudaMemoryTypeDevice", "cudaMemoryTypeManaged")
        on_gpu = attributes.type in [self.constant("cudaMemoryType", kind) for kind in kinds]
        return int(attributes.device) if on_gpu else None

    def is_reachable(self, address: int, gpu: Gpu) -> bool:
        """Tell whether work in the primary context of `gpu` may read `address`, which lies on it.

        Memory of pools (cudaMallocAsync) and of virtual addresses (cuMemMap) belongs to no context.
        """
        from cuda.bindings import driver

        try:
            attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT
            owner = native_handle(self.call_driver("cuPointerGetAttribute", attribute, address))
        except DeviceError:  # what the driver knows no context of
            return True
        return owner in (0, native_handle(self._primary_context(gpu)))

    def read(self, array: Array, address: int) -> None:
        """Fill a contiguous array with what lies at `address` on the GPU, and wait for it."""
        kind = self.constant("cudaMemcpyKind", "cudaMemcpyDeviceToHost")
        self.call("cudaMemcpy", array.ctypes.data, address, array.nbytes, kind)

    def _primary_context(self, gpu: Gpu) -> Any:
        """Return the context that the CUDA runtime, and so TensorRT, has on a device; it is kept to the end."""
        with self._retaining:
            if gpu.number not in self._contexts:
                self.call_driver("cuInit", 0)
                device = self.call_driver("cuDeviceGet", gpu.number)
                self._contexts[gpu.number] = self.call_driver("cuDevicePrimaryCtxRetain", device)
            return self._contexts[gpu.number]


def native_handle(value: Any) -> int:
    """Return a handle of cuda-python as a number."""
    if isinstance(value, int):
        return value
    try:
        from cuda.bindings.utils import get_cuda_native_handle
    except ImportError:  # older ones lack it
        return int(value)
    return int(get_cuda_native_handle(value))


def import_cuda() -> Cuda:
    """Return the CUDA runtime. Raises `MissingPackageError` without cuda-python."""
    with needed_for("running engines", *package_extras()):
        from cuda.bindings import runtime
    return Cuda(runtime)


_collector = threading.Lock()


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep Python's collector of cycles from running in the block, which one thread enters at a time."""
    with _collector:
        was_on = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_on:
                gc.enable()


class DeviceMemory:
    """A block of `size` bytes on the GPU at `address`."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = size
        self.address = int(cuda.call("cudaMalloc", max(1, size)))

    def close(self) -> None:
        """Free the block."""
        if self.address:
            self._cuda.call("cudaFree", self.address)
            self.address = 0


class PinnedArray:
    """Host memory that the GPU reads and writes without a copy in between, as a NumPy `array`."""

    def __init__(self, cuda: Cuda, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self._cuda = cuda
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        self.address = int(cuda.call("cudaHostAlloc", size, cuda.flag("cudaHostAllocDefault")))
        block = (ctypes.c_uint8 * size).from_address(self.address)
        count = int(np.prod(shape)) * dtype.itemsize
        self.array: Array = (
            np.frombuffer(memoryview(block).cast("B"), np.uint8, count).view(dtype).reshape(tuple(shape))
        )

    def close(self) -> None:
        """Free the memory; `array` must not be used any more."""
        if self.address:
            self.array = np.empty(0, self.array.dtype)
            self._cuda.call("cudaFreeHost", self.address)
            self.address = 0


class Stream:
    """A queue of work on the GPU, in order. With `blocking` the thread that waits for it sleeps instead of spinning."""

    def __init__(self, cuda: Cuda, *, blocking: bool = False) -> None:
        self._cuda = cuda
        self._end = Event(cuda, "cudaEventBlockingSync", "cudaEventDisableTiming") if blocking else None
        try:
            self._stream: Any = cuda.call("cudaStreamCreateWithFlags", cuda.flag("cudaStreamNonBlocking"))
        except BaseException:
            if self._end is not None:
                self._end.close()
            raise

    @property
    def handle(self) -> int:
        """The stream as the number that TensorRT wants."""
        return native_handle(self._stream)

    def upload(self, target: DeviceMemory, source: PinnedArray, size: int, offset: int = 0) -> None:
        """Queue a copy of `size` bytes, `offset` bytes from the start of both, to the GPU."""
        self._copy(target.address + offset, source.address + offset, size, "cudaMemcpyHostToDevice")

    def clear(self, target: DeviceMemory, size: int, offset: int) -> None:
        """Queue zeros for `size` bytes, `offset` bytes from the start."""
        self._cuda.call("cudaMemsetAsync", target.address + offset, 0, size, self._stream)

    def download(self, target: PinnedArray, source: DeviceMemory, size: int) -> None:
        """Queue a copy of the first `size` bytes from the GPU."""
        self._copy(target.address, source.address, size, "cudaMemcpyDeviceToHost")

    def copy(self, target: int, source: int, size: int) -> None:
        """Queue a copy of `size` bytes from one address on the GPU to another."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def _copy(self, target: int, source: int, size: int, direction: str) -> None:
        kind = self._cuda.constant("cudaMemcpyKind", direction)
        self._cuda.call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until everything queued is done."""
        if self._end is None:
            self._cuda.call("cudaStreamSynchronize", self._stream)
        else:
            self._end.record(self)
            self._end.synchronize()

    def wait(self, event: Event) -> None:
        """Queue a wait, on the GPU, for what was queued before `event` was recorded last."""
        self._cuda.call("cudaStreamWaitEvent", self._stream, event.handle, 0)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Record what `work` queues here, instead of doing it, and return it as a CUDA graph.

        The stream is usable afterwards, also when `work` raises or can't be recorded. Python's garbage collector stands
        still meanwhile: memory of other engines or of torch that it would free in this thread invalidates the capture.
        """
        mode = self._cuda.constant("cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal")
        with without_garbage_collection():
            self._cuda.call("cudaStreamBeginCapture", self._stream, mode)
            try:
                work()
            except BaseException:
                self._abandon_capture()
                raise
            try:
                recorded = self._cuda.call("cudaStreamEndCapture", self._stream)
            except DeviceError:  # which has ended it all the same
                self._cuda.forget_error()
                raise
        try:
            return CudaGraph(self._cuda, self._cuda.call("cudaGraphInstantiate", recorded, 0))
        except DeviceError:
            self._cuda.forget_error()
            raise
        finally:
            self._cuda.call("cudaGraphDestroy", recorded)

    def _abandon_capture(self) -> None:
        """End a capture whose work has failed, and with it the failure."""
        with suppress(DeviceError):  # one that was invalidated has no graph
            self._cuda.call("cudaGraphDestroy", self._cuda.call("cudaStreamEndCapture", self._stream))
        self._cuda.forget_error()

    def launch(self, graph: CudaGraph) -> None:
        """Queue all the work of `graph` at once."""
        self._cuda.call("cudaGraphLaunch", graph.executable, self._stream)

    def close(self) -> None:
        """Destroy the stream."""
        stream, self._stream = self._stream, None
        with ExitStack() as stack:  # each is destroyed, also when the other can't be
            if stream is not None:
                stack.callback(self._cuda.call, "cudaStreamDestroy", stream)
            if self._end is not None:
                stack.callback(self._end.close)


class Event:
    """A point in a stream: its time is known afterwards, and other streams can wait for it.

    `flags` are CUDA's, by name, e.g. "cudaEventDisableTiming".
    """

    def __init__(self, cuda: Cuda, *flags: str) -> None:
        self._cuda = cuda
        self.handle: Any = cuda.call("cudaEventCreateWithFlags", sum(cuda.flag(flag) for flag in flags))

    def record(self, stream: Stream | int) -> None:
        """Queue the event, in a stream or in somebody else's by its handle."""
        self._cuda.call("cudaEventRecord", self.handle, stream if isinstance(stream, int) else stream.handle)

    def synchronize(self) -> None:
        """Wait until it is reached."""
        self._cuda.call("cudaEventSynchronize", self.handle)

    def since(self, earlier: Event) -> float:
        """Return the milliseconds between two events that are done."""
        return float(self._cuda.call("cudaEventElapsedTime", earlier.handle, self.handle))

    def close(self) -> None:
        """Destroy the event."""
        if self.handle is not None:
            self._cuda.call("cudaEventDestroy", self.handle)
            self.handle = None


class CudaGraph:
    """Recorded work that is launched as a whole."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda = cuda
        self.executable = executable

    def close(self) -> None:
        """Destroy the graph."""
        if self.executable is not None:
            self._cuda.call("cudaGraphExecDestroy", self.executable)
            self.executable = None
