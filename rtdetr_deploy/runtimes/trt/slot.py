"""What one call of an engine needs: a stream, working memory, and inputs and outputs on both sides of the bus.

An engine has a slot or two. Calls in different slots run at the same time: copies of one overlap with the work of the
other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtdetr_deploy.errors import DeviceError
from rtdetr_deploy.images.gpu_array import GpuArray
from rtdetr_deploy.runtimes.protocol import Array, Feed, TensorSpec
from rtdetr_deploy.runtimes.trt.batch_context import Shared
from rtdetr_deploy.runtimes.trt.bindings import Binding, allocate_bindings
from rtdetr_deploy.runtimes.trt.contexts import Contexts
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Event, Gpu, Stream
from rtdetr_deploy.runtimes.trt.cuda_resize import FrameResizer, ResizeKernel
from rtdetr_deploy.runtimes.trt.device_output import EngineOutput, OutputBlock, copy_outputs, wait_for_readers
from rtdetr_deploy.runtimes.trt.pool import Pool
from rtdetr_deploy.runtimes.trt.preprocess import FrameBatch

if TYPE_CHECKING:
    import tensorrt as trt


class LazyKernel:
    """The kernel that resizes, compiled when it is first needed."""

    def __init__(self, cuda: Cuda, gpu: Gpu) -> None:
        self._cuda, self._gpu = cuda, gpu
        self._kernel: ResizeKernel | None = None

    def get(self) -> ResizeKernel:
        """Return the kernel. Raises `MissingPackageError` without NVIDIA's compiler."""
        if self._kernel is None:
            self._kernel = ResizeKernel(self._cuda, self._gpu)
        return self._kernel

    def close(self) -> None:
        """Free it where there is one."""
        if self._kernel is not None:
            self._kernel.close()


@dataclass(frozen=True)
class Common:
    """What the slots of an engine share.

    `making` is held while contexts are made, since an engine serves one thread at a time then, and the kernel.
    """

    file: str
    max_batch: int
    cuda: Cuda
    gpu: Gpu
    kernel: LazyKernel
    events: Pool[Event]
    blocking_sync: bool
    making: threading.RLock


class Slot:
    """Runs one call at a time; the engine's GPU must be the current one. It keeps no reference to the engine itself."""

    def __init__(self, engine: trt.ICudaEngine, common: Common) -> None:
        import tensorrt as trt

        self._common = common
        self._resizer: FrameResizer | None = None
        self._timers: tuple[Event, Event] | None = None
        cuda, file = common.cuda, common.file
        with ExitStack() as stack:  # closed in reverse order, here when opening fails, in `close` otherwise
            self.stream = Stream(cuda, blocking=common.blocking_sync)
            stack.callback(self.stream.close)
            workspace = DeviceMemory(cuda, engine.device_memory_size_v2)
            stack.callback(workspace.close)
            memory = (file, common.max_batch, cuda, stack)
            inputs, self.inputs = allocate_bindings(engine, trt.TensorIOMode.INPUT, *memory)
            outputs, self.outputs = allocate_bindings(engine, trt.TensorIOMode.OUTPUT, *memory)
            self.specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = inputs, outputs
            self._shared = Shared(file, self.stream, workspace, self.inputs, self.outputs)
            stack.callback(self._close_resizer)
            self.contexts = Contexts(self._shared, common.gpu, common.making)
            stack.callback(self.contexts.close)
            self._resources = stack.pop_all()

    def replays(self, wanted: bool) -> None:
        """Let calls replay their CUDA graphs (as they do from the second on), or queue them step by step."""
        self._shared.replays = wanted

    def run(self, engine: trt.ICudaEngine, feed: Feed, batch: int) -> dict[str, Array]:
        """Return copies of the outputs for a feed of `batch` rows that was checked."""
        with self._idle_after_errors():
            context = self.contexts.find(engine, batch)
            context.prepare(self._stage(feed, batch))()
            return context.finish()

    def run_timed(
        self, engine: trt.ICudaEngine, feed: Feed, batch: int, calls: int = 1
    ) -> tuple[dict[str, Array], float]:
        """As `run`; also return the milliseconds of the engine alone, the mean of `calls` of it without a gap."""
        with self._idle_after_errors():
            context = self.contexts.find(engine, batch)
            uploads = self._stage(feed, batch)
            if self._timers is None:
                self._timers = (self._make_timer(), self._make_timer())
            start, end = self._timers
            execute = context.prepare((), downloads=False)
            context.upload(uploads)
            start.record(self.stream)
            for _ in range(calls):  # queued at once: the GPU doesn't wait for the host in between
                execute()
            end.record(self.stream)
            context.download()
            return context.finish(), end.since(start) / calls

    def run_on_device(
        self, engine: trt.ICudaEngine, feed: Feed, batch: int, block: OutputBlock
    ) -> dict[str, EngineOutput]:
        """As `run`, with the outputs in `block`."""
        with self._idle_after_errors():
            context = self.contexts.find(engine, batch)
            context.prepare(self._stage(feed, batch), downloads=False)()
            wait_for_readers(self.stream, self._common.events)
            outputs = copy_outputs(self.outputs, batch, block, self.stream)
            context.wait()
            return outputs

    def close(self) -> None:
        """Free everything; nothing may be running."""
        self._resources.close()

    def _stage(self, feed: Feed, batch: int) -> Sequence[Binding]:
        """Queue what comes from the GPU, and put the rest where it is copied from; return the inputs of the rest."""
        uploads = []
        for binding in self.inputs:
            value = feed[binding.name]
            if isinstance(value, FrameBatch):
                if self._resizer is None:
                    with self._common.making:
                        self._resizer = FrameResizer(self._common.cuda, self._common.kernel.get())
                value.queue(self.stream, self._resizer, binding, self._common.file)
            elif isinstance(value, GpuArray):
                if value.ready is not None:
                    self.stream.wait(value.ready)
                self.stream.copy(binding.device.address, value.address, binding.size(batch))
            else:
                binding.host.array[:batch] = value
                uploads.append(binding)
        return uploads

    @contextmanager
    def _idle_after_errors(self) -> Iterator[None]:
        """Wait for what was queued before an error: the next call uses the same memory."""
        try:
            yield
        except BaseException:
            with suppress(DeviceError):  # the error that is on its way says more
                self.stream.synchronize()
            raise

    def _make_timer(self) -> Event:
        event = Event(self._common.cuda)
        self._resources.callback(event.close)
        return event

    def _close_resizer(self) -> None:
        if self._resizer is not None:
            self._resizer.close()
