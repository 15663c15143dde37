"""TensorRT engines on an NVIDIA GPU.

Everything is allocated when the engine is opened: pinned host memory and GPU memory for the maximum batch, once for
each slot. A call takes a slot, copies the input in, runs, copies the outputs out. All that is one CUDA graph: each slot
has one for each batch size and each kind of call (which inputs are copied in, and whether outputs are copied out), made
by the first such call that is not the slot's first of this batch size. Frames can be resized on the GPU instead, ahead
of that graph, and inputs and outputs can stay there.

Written for TensorRT 10.x and 11.x.
"""

from __future__ import annotations

import json
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rtdetr_deploy.errors import ArtifactError, DeviceError, OptionError
from rtdetr_deploy.files import reason
from rtdetr_deploy.images.gpu_array import GpuArray
from rtdetr_deploy.runtimes.feed import check_feed
from rtdetr_deploy.runtimes.options import RuntimeOptions, cpu_or_cuda
from rtdetr_deploy.runtimes.protocol import Array, Feed, Preprocessor
from rtdetr_deploy.runtimes.slots import Slots
from rtdetr_deploy.runtimes.trt.bindings import batch_range, check_bindings, resize_destination
from rtdetr_deploy.runtimes.trt.calls import PYBIND_ERRORS, ask, explain
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Event, Gpu, Stream, import_cuda
from rtdetr_deploy.runtimes.trt.device_output import EngineOutput, OutputBlock, block_size
from rtdetr_deploy.runtimes.trt.logger import get_logger, mark
from rtdetr_deploy.runtimes.trt.pool import Pool
from rtdetr_deploy.runtimes.trt.preprocess import CudaPreprocessor, FrameBatch
from rtdetr_deploy.runtimes.trt.receive import Receiver
from rtdetr_deploy.runtimes.trt.resources import Resources
from rtdetr_deploy.runtimes.trt.sidecar import EngineInfo, check_fits, read_engine_info, warn_if_accepted
from rtdetr_deploy.runtimes.trt.slot import Common, LazyKernel, Slot
from rtdetr_deploy.runtimes.trt.supported import fit_driver, require_tensorrt

if TYPE_CHECKING:
    import tensorrt as trt

    from rtdetr_deploy.images.preprocess_spec import PreprocessSpec

Made = TypeVar("Made")

SLOTS = (None, 1, 2)
"""A third call would wait for the GPU, which the second keeps busy."""
MEMORY_LEFT = 0.1
"""Share of the GPU's memory that a second slot leaves where nobody asked for it: contexts take more later."""


@dataclass
class Loaded:
    """TensorRT's own objects; each is destroyed with its last reference, so this is the only one that lasts."""

    runtime: trt.Runtime | None
    engine: trt.ICudaEngine | None = None

    def load(self, content: bytes, file: str, host_code: bool) -> trt.ICudaEngine:
        """Load and return the engine. Raises `ArtifactError` in TensorRT's words where it can't."""
        import tensorrt as trt

        runtime = self.runtime
        assert runtime is not None
        if host_code:
            runtime.engine_host_code_allowed = True
        failure = f"{file} can't be loaded by TensorRT {trt.__version__}"
        self.engine = ask(lambda: runtime.deserialize_cuda_engine(content), failure, ArtifactError)
        return self.engine


class TensorRtRuntime:
    """A loaded engine; see `GpuRuntime`. Calls from several threads take a slot each; further ones wait.

    Without `options` it has one slot. One that is garbage collected without `close` frees its memory, too, with a
    `ResourceWarning`. After a fork it works in the process that opened it; others get a `DeviceError`.
    """

    resizers = frozenset({"cuda"})

    def __init__(
        self,
        content: bytes,
        file: str,
        engine_info: EngineInfo | None,
        cuda: Cuda,
        gpu: Gpu,
        *,
        host_code: bool = False,
        options: RuntimeOptions | None = None,
    ) -> None:
        import tensorrt as trt

        options = options or RuntimeOptions(slots=1)
        self.file = file
        self._cuda, self._gpu = cuda, gpu
        self.name = f"TensorRT {trt.__version__} ({gpu.name})"
        self.info = engine_info.info if engine_info is not None else None
        self.metadata: Mapping[str, str] = {}
        self._making = threading.RLock()
        self._resources = Resources(file, cuda, gpu)
        with self._resources.opening() as stack:  # nothing in it may refer to `self`
            logger = get_logger()
            trt.init_libnvinfer_plugins(logger, "")  # EfficientNMS_TRT and others; third-party engines have them
            self._loaded = Loaded(start(trt.Runtime, logger))
            stack.callback(setattr, self._loaded, "runtime", None)
            engine = self._loaded.load(content, file, host_code)
            stack.callback(setattr, self._loaded, "engine", None)
            check_bindings(engine, file)
            self.min_batch, self.max_batch = batch_range(engine, file)
            events = Pool(lambda: Event(cuda, "cudaEventDisableTiming"))
            stack.callback(events.close)
            kernel = LazyKernel(cuda, gpu)
            stack.callback(kernel.close)
            common = Common(file, self.max_batch, cuda, gpu, kernel, events, options.blocking_sync, self._making)
            self._slots = Slots(open_slots(engine, common, options.slots, stack))
            self.inputs, self.outputs = self._slots.first.specs
            size = block_size(self._slots.first.outputs, self.max_batch)
            self._blocks = Pool(lambda: DeviceMemory(cuda, size))
            stack.callback(self._blocks.close)
            arrivals = Stream(cuda)
            stack.callback(arrivals.close)
            self._receiver = Receiver(cuda, gpu, file, arrivals, events)
            for stream in (*(slot.stream for slot in self._slots), arrivals):
                self._resources.add_stream(stream)
        self._finalizer = weakref.finalize(self, self._resources.free_forgotten)

    @property
    def slots(self) -> int:
        """See `ParallelRuntime.slots`."""
        return len(self._slots)

    def preprocessor(self, name: str, resizer: str, spec: PreprocessSpec) -> Preprocessor:
        """See `PreprocessingRuntime.preprocessor`; the kernel makes what RT-DETR wants."""
        with self._resources.in_use():  # raises where it is closed
            pass
        binding = next((one for one in self._slots.first.inputs if one.name == name), None)
        if binding is None or resizer not in self.resizers:
            raise OptionError(f"{self.file} has no `resizer` {resizer!r} for an input {name!r}")
        if not spec.is_plain:
            raise OptionError(f'`resizer="{resizer}"` makes RGB in [0, 1], stretched; {self.file} wants {spec}')
        resize_destination(binding, self.file)  # raises for inputs that it can't make
        return CudaPreprocessor(name, self.min_batch, self._receiver)

    def receive(self, array: object, what: str) -> GpuArray:
        """See `GpuRuntime.receive`; raises `ArtifactError` after `close`, too."""
        with self._resources.in_use():
            return self._receiver.receive(array, what)

    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` for batches out of range, too, else `DeviceError`.

        The first call with frames raises `MissingPackageError` without NVRTC.
        """
        with self._in_use() as (slot, engine):
            return slot.run(engine, feed, self._check(feed))

    def run_timed(self, feed: Feed, calls: int = 1) -> tuple[dict[str, Array], float]:
        """See `TimedRuntime.run_timed`; the time is taken by CUDA events around the engine, without copies."""
        with self._in_use() as (slot, engine):
            return slot.run_timed(engine, feed, self._check(feed), calls)

    def run_on_device(self, feed: Feed) -> dict[str, EngineOutput]:
        """See `GpuRuntime.run_on_device`; errors are those of `run`."""
        with self._in_use() as (slot, engine):
            return slot.run_on_device(engine, feed, self._check(feed), self._take_block())

    def run_in_each_slot(self, feed: Feed, *, on_device: bool = False) -> None:
        """See `GpuRuntime.run_in_each_slot`; errors are those of `run`."""
        for one in self._slots:
            with self._in_use(one) as (slot, engine):
                if on_device:
                    slot.run_on_device(engine, feed, self._check(feed), self._take_block())
                else:
                    slot.run(engine, feed, self._check(feed))

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Queue the calls of this block step by step and replay no CUDA graph: what replays are compared with."""
        for slot in self._slots:
            slot.replays(False)
        try:
            yield
        finally:
            for slot in self._slots:
                slot.replays(True)

    def layers(self) -> list[Any]:
        """Return the engine inspector's list of layers: maps where the engine was built with details, else names.

        Shapes are those of the maximum batch: without them the inspector of a dynamic engine tells no types. Raises
        `ArtifactError` when the inspector gives no list.
        """
        import tensorrt as trt

        failure = f"{self.file}: the engine inspector gives no layers"
        with self._in_use() as (slot, engine), self._making:
            inspector = ask(engine.create_engine_inspector, failure, ArtifactError)
            inspector.execution_context = slot.contexts.find(engine, self.max_batch).context
            kind = trt.LayerInformationFormat.JSON
            text = ask(lambda: inspector.get_engine_information(kind), failure, ArtifactError)
        try:
            # Names of nodes are separated by control characters, which TensorRT need not escape.
            return list(json.loads(text, strict=False)["Layers"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{failure} ({error!r})") from error

    def close(self) -> None:
        """See `Runtime.close`; calls that have begun are waited for. Interrupted, it leaves the engine open.

        Raises `DeviceError` in the middle of a call of the same thread, as from a signal handler.
        """
        self._resources.free()
        self._finalizer.detach()

    @contextmanager
    def _in_use(self, one: Slot | None = None) -> Iterator[tuple[Slot, trt.ICudaEngine]]:
        """Lend out a slot, with the engine, for the block of one call; see `Resources.in_use`."""
        with self._resources.in_use(), self._slots.take(one) as slot:
            assert self._loaded.engine is not None
            yield slot, self._loaded.engine

    def _take_block(self) -> OutputBlock:
        """Return memory for the outputs of one call."""
        return OutputBlock(self._blocks, self.file, self._cuda, self._resources)

    def _check(self, feed: Feed) -> int:
        """Check all that is fed, and return the rows."""
        check_feed(feed, self.inputs, self.file, own=(FrameBatch, GpuArray))
        for name, value in feed.items():
            if isinstance(value, FrameBatch) and not value.is_for(self._receiver, name):
                raise ArtifactError(f"{self.file} takes {name} from its own preprocessor, not another one's")
            if isinstance(value, GpuArray):
                self._check_array(name, value)
        batches = {len(value) for value in feed.values()}
        batch = batches.pop()
        if batches:
            raise ArtifactError(f"{self.file} takes the same number of rows in each input")
        if not self.min_batch <= batch <= self.max_batch:
            raise ArtifactError(
                f"batch {batch} is outside the range of {self.file}, {self.min_batch} to {self.max_batch}; "
                "build an engine for it"
            )
        return batch

    def _check_array(self, name: str, array: GpuArray) -> None:
        if array.reader is not self._receiver:
            raise ArtifactError(f"{self.file} takes {name} as its own receive() returns it, not another runtime's")
        if not array.is_contiguous:
            raise ArtifactError(
                f"{self.file} takes {name} without gaps, not strides of {list(array.strides)} bytes; pass a contiguous "
                "copy: x.contiguous() of torch, cupy.ascontiguousarray(x)"
            )


def open_slots(engine: trt.ICudaEngine, common: Common, wanted: int | None, stack: ExitStack) -> list[Slot]:
    """Return `wanted` slots, which `stack` closes; None: two, or with a warning one where memory doesn't suffice.

    Raises `DeviceError` where memory doesn't suffice otherwise.
    """
    slots = [Slot(engine, common)]
    stack.callback(slots[0].close)
    if wanted != 1:
        try:
            slots.append(_open_second(engine, common, spare=MEMORY_LEFT if wanted is None else 0.0))
        except DeviceError as error:
            if wanted is not None:
                raise DeviceError(f"{common.file} can't have a second slot; `slots=1` needs less: {error}") from error
            common.cuda.forget_error()
            text = f"{common.file} runs one call at a time, as `slots=1`; it can't have a second slot: {error}"
            warnings.warn(text, stacklevel=2)
        else:
            stack.callback(slots[1].close)
    return slots


def _open_second(engine: trt.ICudaEngine, common: Common, spare: float) -> Slot:
    """Return a further slot. Raises `DeviceError` unless this share of the GPU's memory is left."""
    slot = Slot(engine, common)
    free, total = common.cuda.call("cudaMemGetInfo")
    if free < spare * total:
        slot.close()
        raise DeviceError(f"it would leave {free / 1e6:.0f} MB of {total / 1e6:.0f} MB of GPU memory")
    return slot


def start(factory: Callable[[Any], Made], logger: Any) -> Made:
    """Return what a TensorRT factory makes. Raises `DeviceError` where TensorRT can't use the GPU or its driver."""
    since = mark()
    try:
        return factory(logger)
    except PYBIND_ERRORS as error:  # also for a null pointer
        raise DeviceError(
            f"TensorRT can't be started ({explain(since, error)}): its CUDA version may be newer than the driver; "
            f"{fit_driver()}"
        ) from error


def open_model(model: Path | bytes, options: RuntimeOptions) -> TensorRtRuntime:
    """Open an engine file, or the content of one, on "cuda" (default: the current GPU) or "cuda:N".

    Raises `ArtifactError` when it was built for another TensorRT or GPU, or is not an engine, `DeviceError` without a
    usable GPU, `MissingPackageError` without TensorRT or cuda-python, `OptionError` for what engines don't have.
    """
    file = model.name if isinstance(model, Path) else "the engine"
    kind, number = cpu_or_cuda(options.device or "cuda", "TensorRT", cpu=False)
    if kind == "cpu":
        raise OptionError(f'`device="cpu"` is not for engines: {file} runs on NVIDIA GPUs only; leave it out')
    if options.threads is not None:
        raise OptionError(f"`threads` is not for engines: {file} has none; leave it out")
    if options.slots not in SLOTS:
        raise OptionError(f"`slots` is {options.slots}, expected 1 or 2: a third call would wait for the GPU")
    trt = require_tensorrt("running engines")
    engine_info = None
    if isinstance(model, Path):
        try:
            content = model.read_bytes()
        except OSError as error:
            raise ArtifactError(f"can't read {model}: {reason(error)}") from error
        engine_info = read_engine_info(model, content)
    else:
        content = model
    cuda = import_cuda()
    gpu = cuda.gpu(number)
    if engine_info is not None:
        check_fits(engine_info, file, trt.__version__, gpu)
        warn_if_accepted(engine_info, file)
    host_code = engine_info is not None and engine_info.version_compatible
    return TensorRtRuntime(content, file, engine_info, cuda, gpu, host_code=host_code, options=options)
