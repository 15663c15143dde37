"""Arrays of other libraries on an engine's GPU: taken as they lie, with what must be waited for."""

from __future__ import annotations

from dataclasses import replace

from rtdetr_deploy.errors import ImageError
from rtdetr_deploy.images.gpu_array import GpuArray, is_on_gpu, is_third_party_array, read_gpu_array, told_gpu
from rtdetr_deploy.runtimes.trt.cuda import Cuda, Event, Gpu, Stream
from rtdetr_deploy.runtimes.trt.pool import Pool


class Receiver:
    """Takes arrays on `gpu` for the engine `file`, whichever of its streams reads them later; marks them as its own.

    The libraries make `stream` wait for what they have queued; an event recorded there then says "ready". The stream
    does nothing else, so an array waits for those taken before it, and not for later ones.
    """

    def __init__(self, cuda: Cuda, gpu: Gpu, file: str, stream: Stream, events: Pool[Event]) -> None:
        self._cuda, self._gpu, self._file = cuda, gpu, file
        self._stream, self._events = stream, events

    def receive(self, array: object, what: str) -> GpuArray:
        """See `GpuRuntime.receive`; the GPU must be the current one."""
        if not is_third_party_array(array) or not is_on_gpu(array):
            raise ImageError(f"{what} is {type(array).__name__}, expected an array on a GPU")
        told = told_gpu(array)
        if told is not None:  # before it is read: torch exports only what lies on the current GPU, and says less
            self._check_gpu(told, what)
        found = read_gpu_array(array, self._stream.handle, what)
        if 0 not in found.shape:
            self._check_place(found, what)
            self._check_context(found, what)
        ready = self._events.take()
        received = replace(found, reader=self, ready=ready)
        self._events.lend(ready, received)
        ready.record(found.stream)
        return received

    def _check_place(self, found: GpuArray, what: str) -> None:
        """Raise `ImageError` unless the array lies on the GPU of the engine."""
        gpu = self._cuda.gpu_of(found.address)
        if gpu is None:
            raise ImageError(f"{what} does not lie in memory of a GPU (address {found.address:#x})")
        self._check_gpu(gpu, what)

    def _check_gpu(self, gpu: int, what: str) -> None:
        if gpu != self._gpu.number:
            raise ImageError(
                f'{what} is on GPU {gpu}, and {self._file} runs on GPU {self._gpu.number}: open it with `device="cuda:'
                f'{gpu}"`, or copy the array there'
            )

    def _check_context(self, found: GpuArray, what: str) -> None:
        """Raise `ImageError` unless the context in which the engine runs can read the array."""
        if not self._cuda.is_reachable(found.address, self._gpu):
            raise ImageError(
                f"{what} lies in another CUDA context than the GPU's primary one, where {self._file} runs: import "
                "pycuda.autoprimaryctx instead of pycuda.autoinit, or make the array in the primary context"
            )
