"""TensorRT engines on an NVIDIA GPU.

Everything is allocated when the engine is opened: pinned host memory and GPU memory for the maximum batch. A call
copies the input in, runs, copies the outputs out; from the second call of a batch size on all that is one CUDA graph.
Frames can be resized on the GPU instead, ahead of that graph.

Written for TensorRT 10.x and 11.x.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rtdetr_deploy.errors import ArtifactError, DeviceError, OptionError
from rtdetr_deploy.files import reason
from rtdetr_deploy.packages import install_command
from rtdetr_deploy.runtimes.feed import check_feed
from rtdetr_deploy.runtimes.options import RuntimeOptions, cpu_or_cuda
from rtdetr_deploy.runtimes.protocol import Array, Feed, Preprocessor
from rtdetr_deploy.runtimes.trt.batch_context import BatchContext, Shared
from rtdetr_deploy.runtimes.trt.bindings import (
    Binding,
    allocate_bindings,
    batch_range,
    check_bindings,
    resize_destination,
)
from rtdetr_deploy.runtimes.trt.calls import PYBIND_ERRORS, ask, explain
from rtdetr_deploy.runtimes.trt.contexts import Contexts
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Event, Gpu, Stream, import_cuda
from rtdetr_deploy.runtimes.trt.cuda_resize import FrameResizer
from rtdetr_deploy.runtimes.trt.logger import get_logger, mark
from rtdetr_deploy.runtimes.trt.preprocess import CudaPreprocessor, FrameBatch
from rtdetr_deploy.runtimes.trt.resources import Resources
from rtdetr_deploy.runtimes.trt.sidecar import EngineInfo, check_fits, read_engine_info, warn_if_accepted
from rtdetr_deploy.runtimes.trt.supported import require_tensorrt

if TYPE_CHECKING:
    import tensorrt as trt

    from rtdetr_deploy.images.preprocess_spec import PreprocessSpec

Made = TypeVar("Made")


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
    """A loaded engine; see `Runtime`. Calls from several threads are run one after the other.

    One that is garbage collected without `close` frees its memory, too, with a `ResourceWarning`. After a fork it works
    in the process that opened it; others get a `DeviceError`.
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
    ) -> None:
        import tensorrt as trt

        self.file = file
        self._cuda, self._gpu = cuda, gpu
        self._resizer: FrameResizer | None = None
        self._events: tuple[Event, Event] | None = None
        self.name = f"TensorRT {trt.__version__} ({gpu.name})"
        self.info = engine_info.info if engine_info is not None else None
        self.metadata: Mapping[str, str] = {}
        self._resources = Resources(file, cuda, gpu)
        with self._resources.opening() as stack:  # nothing in it may refer to `self`
            logger = get_logger()
            trt.init_libnvinfer_plugins(logger, "")  # EfficientNMS_TRT and others; third-party engines have them
            self._loaded = Loaded(start(trt.Runtime, logger))
            stack.callback(setattr, self._loaded, "runtime", None)
            engine = self._loaded.load(content, file, host_code)
            stack.callback(setattr, self._loaded, "engine", None)
            check_bindings(engine, file)
            self._stream = Stream(cuda)
            stack.callback(self._stream.close)
            self._resources.add_stream(self._stream)
            workspace = DeviceMemory(cuda, engine.device_memory_size_v2)
            stack.callback(workspace.close)
            self.min_batch, self.max_batch = batch_range(engine, file)
            memory = (file, self.max_batch, cuda, stack)
            self.inputs, self._inputs = allocate_bindings(engine, trt.TensorIOMode.INPUT, *memory)
            self.outputs, outputs = allocate_bindings(engine, trt.TensorIOMode.OUTPUT, *memory)
            self._shared = Shared(file, self._stream, workspace, self._inputs, outputs)
            self._contexts = Contexts(self._shared, gpu)
            stack.callback(self._contexts.close)
        self._finalizer = weakref.finalize(self, self._resources.free_forgotten)

    def preprocessor(self, name: str, resizer: str, spec: PreprocessSpec) -> Preprocessor:
        """See `PreprocessingRuntime.preprocessor`; the kernel makes what RT-DETR wants."""
        with self._in_use():  # raises where it is closed
            pass
        binding = next((one for one in self._inputs if one.name == name), None)
        if binding is None or resizer not in self.resizers:
            raise OptionError(f"{self.file} has no `resizer` {resizer!r} for an input {name!r}")
        if not spec.is_plain:
            raise OptionError(f'`resizer="{resizer}"` makes RGB in [0, 1], stretched; {self.file} wants {spec}')
        return CudaPreprocessor(binding, resize_destination(binding, self.file), self.min_batch)

    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` for batches out of range, too, else `DeviceError`.

        The first call with frames raises `MissingPackageError` without NVRTC.
        """
        with self._in_use() as engine:
            context = self._context_of(engine, feed)
            uploads = self._stage(feed)
            context.prepare(uploads)()
            return context.finish()

    def run_timed(self, feed: Feed) -> tuple[dict[str, Array], float]:
        """See `TimedRuntime.run_timed`; the time is taken by CUDA events around the engine, without copies."""
        with self._in_use() as engine:
            context = self._context_of(engine, feed)
            uploads = self._stage(feed)
            if self._events is None:
                self._events = (self._make_event(), self._make_event())
            start, end = self._events
            execute = context.prepare((), downloads=False)
            context.upload(uploads)
            start.record(self._stream)
            execute()
            end.record(self._stream)
            context.download()
            return context.finish(), end.since(start)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Queue the calls of this block step by step and replay no CUDA graph: what replays are compared with."""
        self._shared.replays = False
        try:
            yield
        finally:
            self._shared.replays = True

    def layers(self) -> list[Any]:
        """Return the engine inspector's list of layers: maps where the engine was built with details, else names.

        Shapes are those of the maximum batch: without them the inspector of a dynamic engine tells no types. Raises
        `ArtifactError` when the inspector gives no list.
        """
        import tensorrt as trt

        failure = f"{self.file}: the engine inspector gives no layers"
        with self._in_use() as engine:
            inspector = ask(engine.create_engine_inspector, failure, ArtifactError)
            inspector.execution_context = self._contexts.find(engine, self.max_batch).context
            kind = trt.LayerInformationFormat.JSON
            text = ask(lambda: inspector.get_engine_information(kind), failure, ArtifactError)
        try:
            # Names of nodes are separated by control characters, which TensorRT need not escape.
            return list(json.loads(text, strict=False)["Layers"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{failure} ({error!r})") from error

    def close(self) -> None:
        """See `Runtime.close`."""
        self._finalizer.detach()
        self._resources.free()

    @contextmanager
    def _in_use(self) -> Iterator[trt.ICudaEngine]:
        """Return the engine for the block of one call; see `Resources.in_use`."""
        with self._resources.in_use():
            assert self._loaded.engine is not None
            yield self._loaded.engine

    def _context_of(self, engine: trt.ICudaEngine, feed: Feed) -> BatchContext:
        """Check all that is fed, and return what runs so many rows."""
        arrays = check_feed(feed, self.inputs, self.file, own=FrameBatch)
        for binding in self._inputs:
            value = feed[binding.name]
            if isinstance(value, FrameBatch) and value.binding is not binding:
                raise ArtifactError(f"{self.file} takes {binding.name} from its own preprocessor, not another one's")
        batches = {len(value) for value in feed.values()}
        batch = batches.pop()
        if batches:
            raise ArtifactError(f"{self.file} takes the same number of rows in each input")
        if not self.min_batch <= batch <= self.max_batch:
            raise ArtifactError(
                f"batch {batch} is outside the range of {self.file}, {self.min_batch} to {self.max_batch}; "
                "build an engine for it"
            )
        for binding in self._inputs:
            if binding.name in arrays:
                binding.host.array[:batch] = arrays[binding.name]
        return self._contexts.find(engine, batch)

    def _stage(self, feed: Feed) -> list[Binding]:
        """Queue what is resized on the GPU; return the inputs that are copied in besides."""
        uploads = []
        for binding in self._inputs:
            value = feed[binding.name]
            if isinstance(value, FrameBatch):
                if self._resizer is None:
                    self._resizer = FrameResizer(self._cuda, self._gpu)
                    self._resources.callback(self._resizer.close)
                value.queue(self._stream, self._resizer)
            else:
                uploads.append(binding)
        return uploads

    def _make_event(self) -> Event:
        event = Event(self._cuda)
        self._resources.callback(event.close)
        return event


def start(factory: Callable[[Any], Made], logger: Any) -> Made:
    """Return what a TensorRT factory makes. Raises `DeviceError` where TensorRT can't use the GPU or its driver."""
    since = mark()
    try:
        return factory(logger)
    except PYBIND_ERRORS as error:  # also for a null pointer
        raise DeviceError(
            f"TensorRT can't be started ({explain(since, error)}): its CUDA version may be newer than the driver; "
            f"update the driver, or {install_command('tensorrt-cu12')}"
        ) from error


def open_model(model: Path | bytes, options: RuntimeOptions) -> TensorRtRuntime:
    """Open an engine file, or the content of one, on "cuda" (default: the current GPU) or "cuda:N".

    Raises `ArtifactError` when it was built for another TensorRT or GPU, or is not an engine, `DeviceError` without a
    usable GPU, `MissingPackageError` without TensorRT or cuda-python, `OptionError` for what engines don't have.
    """
    file = model.name if isinstance(model, Path) else "the engine"
    kind, number = cpu_or_cuda(options.device or "cuda", "TensorRT")
    if kind == "cpu":
        raise OptionError(f'`device="cpu"` is not for engines: {file} runs on NVIDIA GPUs only; leave it out')
    if options.threads is not None:
        raise OptionError(f"`threads` is not for engines: {file} has none; leave it out")
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
    return TensorRtRuntime(content, file, engine_info, cuda, gpu, host_code=host_code)
