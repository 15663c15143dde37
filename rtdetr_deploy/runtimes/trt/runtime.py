"""TensorRT engines on an NVIDIA GPU.

Everything is allocated when the engine is opened: pinned host memory and GPU memory for the largest batch. A call
copies the input in, runs, copies the outputs out; from the second call of a batch size on all that is one CUDA graph.
Frames can be resized on the GPU instead, ahead of that graph.

Each batch size has its own execution context, because a recorded graph belongs to the state of one; they share their
working memory, since calls are serialized. Written for TensorRT 10.x and 11.x.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rtdetr_deploy.artifacts.metadata import METADATA_KEY
from rtdetr_deploy.errors import ArtifactError, DeviceError, OptionError
from rtdetr_deploy.files import reason
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.packages import install_command, require
from rtdetr_deploy.runtimes import Array, Device
from rtdetr_deploy.runtimes.trt.bindings import Port, batch_range, frame_target, make_ports
from rtdetr_deploy.runtimes.trt.cuda import Cuda, DeviceMemory, Event, Gpu, Graph, Stream, import_cuda
from rtdetr_deploy.runtimes.trt.cuda_resize import FrameResizer
from rtdetr_deploy.runtimes.trt.logger import last_message, make_logger
from rtdetr_deploy.runtimes.trt.sidecar import EngineInfo, check_fits, read_engine_info

if TYPE_CHECKING:
    import tensorrt as trt

Made = TypeVar("Made")

MOST_LANES = 16
"""Batch sizes whose contexts and graphs are kept."""


@dataclass
class _Lane:
    """What runs one batch size: its context, and its graphs, by the inputs and outputs that are copied in them."""

    context: trt.IExecutionContext
    graphs: dict[tuple[str, ...], Graph] = field(default_factory=dict)
    runs: int = 0


class TensorRtRuntime:
    """A loaded engine; see `Runtime`. Calls from several threads are run one after the other."""

    def __init__(
        self, content: bytes, name: str, facts: EngineInfo | None, cuda: Cuda, gpu: Gpu, *, host_code: bool = False
    ) -> None:
        import tensorrt as trt

        self._file = self.file = name
        self._cuda, self._gpu = cuda, gpu
        self._lock = threading.Lock()
        self._messages: list[str] = []
        self._lanes: dict[int, _Lane] = {}
        self._graphs = True
        self._resizer: FrameResizer | None = None
        self._events: tuple[Event, Event] | None = None
        self.name = f"TensorRT {trt.__version__} ({gpu.name})"
        self.metadata: Mapping[str, str] = {METADATA_KEY: facts.info.to_json()} if facts is not None else {}
        with ExitStack() as stack:  # closed in reverse order, here when opening fails, in `close` otherwise
            self._logger = make_logger(self._messages)
            trt.init_libnvinfer_plugins(self._logger, "")  # EfficientNMS_TRT and others; third-party engines have them
            runtime = start(trt.Runtime, self._logger)
            stack.callback(self._drop, "_runtime")
            self._runtime: trt.Runtime | None = runtime
            if host_code:
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise ArtifactError(
                    f"{name} can't be loaded by TensorRT {trt.__version__}: {last_message(self._messages)}"
                )
            stack.callback(self._drop, "_engine")
            self._engine: trt.ICudaEngine | None = engine
            self._stream = Stream(cuda)
            stack.callback(self._stream.close)
            self._workspace = DeviceMemory(cuda, engine.device_memory_size_v2)
            stack.callback(self._workspace.close)
            self.min_batch, self.max_batch = batch_range(engine, name)
            self.inputs, self._inputs = make_ports(engine, trt.TensorIOMode.INPUT, name, self.max_batch, cuda, stack)
            self.outputs, self._outputs = make_ports(engine, trt.TensorIOMode.OUTPUT, name, self.max_batch, cuda, stack)
            stack.callback(self._close_resizer)
            stack.callback(self._close_lanes)
            self._resources = stack.pop_all()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` for arrays that don't fit, or after `close`, else `DeviceError`."""
        with self._lock:
            engine = self._use()
            batch = self._fill(feed, self._inputs)
            return self._execute(engine, batch, self._inputs)

    def run_frames(self, name: str, frames: Sequence[Frame], feed: Mapping[str, Array]) -> dict[str, Array]:
        """See `FrameRuntime.run_frames`; raises what `run` does, and `MissingPackageError` without NVRTC."""
        with self._lock:
            engine = self._use()
            batch, others = self._queue_frames(name, frames, feed)
            return self._execute(engine, batch, others)

    def run_timed(
        self, feed: Mapping[str, Array], name: str | None = None, frames: Sequence[Frame] = ()
    ) -> tuple[dict[str, Array], float]:
        """See `TimedRuntime.run_timed`; the time is taken by CUDA events around the engine, without copies."""
        with self._lock:
            engine = self._use()
            if name is None:
                uploads: Sequence[Port] = self._inputs
                batch = self._fill(feed, uploads)
            else:
                batch, uploads = self._queue_frames(name, frames, feed)
            lane = self._lanes.get(batch) or self._open_lane(engine, batch)
            if self._events is None:
                self._events = (Event(self._cuda), Event(self._cuda))
                self._resources.callback(self._close_events)
            start, end = self._events
            graph = self._graph(lane, batch, (), downloads=False)
            for port in uploads:
                self._stream.upload(port.device, port.host, port.size(batch))
            start.record(self._stream)
            if graph is not None:
                self._stream.launch(graph)
            else:
                self._enqueue(lane, batch, (), downloads=False)
            end.record(self._stream)
            for port in self._outputs:
                self._stream.download(port.host, port.device, port.size(batch))
            self._stream.synchronize()
            lane.runs += 1
            outputs = {port.name: port.host.array[:batch].copy() for port in self._outputs}
            return outputs, end.since(start)

    def layers(self) -> list[Any]:
        """Return the engine inspector's list of layers: maps where the engine was built with details, else names.

        Shapes are those of the largest batch: without them the inspector of a dynamic engine tells no types. Raises
        `ArtifactError` when the inspector gives no list.
        """
        import tensorrt as trt

        with self._lock:
            engine = self._use()
            lane = self._lanes.get(self.max_batch) or self._open_lane(engine, self.max_batch)
            inspector = engine.create_engine_inspector()
            inspector.execution_context = lane.context
            text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        try:
            return list(json.loads(text)["Layers"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self._file}: the engine inspector gives no layers ({error!r})") from error

    def close(self) -> None:
        """See `Runtime.close`."""
        with self._lock:
            if self._engine is not None:
                self._cuda.use(self._gpu)
            self._resources.close()

    def _use(self) -> trt.ICudaEngine:
        """Make the engine's GPU the current one of this thread, and return the engine."""
        if self._engine is None:
            raise ArtifactError(f"{self._file} is closed; open it again with Predictor or open_runtime")
        self._cuda.use(self._gpu)
        self._messages.clear()
        return self._engine

    def _queue_frames(self, name: str, frames: Sequence[Frame], feed: Mapping[str, Array]) -> tuple[int, list[Port]]:
        """Queue the frames into input `name`; return the number of rows, and the inputs that are copied in besides."""
        others = [port for port in self._inputs if port.name != name]
        (port,) = (port for port in self._inputs if port.name == name)
        batch = max(len(frames), self.min_batch)
        self._check_batch(batch)
        if others:
            self._fill(feed, others)
        target = frame_target(port, self._file)
        if self._resizer is None:
            self._resizer = FrameResizer(self._cuda, self._gpu)
        self._resizer.queue(self._stream, frames, target)
        if batch > len(frames):
            done = len(frames) * target.stride
            self._stream.clear(port.device, port.size(batch) - done, done)
        return batch, others

    def _execute(self, engine: trt.ICudaEngine, batch: int, uploads: Sequence[Port]) -> dict[str, Array]:
        """Run `batch` rows, of which `uploads` are copied in first, and return copies of the outputs."""
        lane = self._lanes.get(batch) or self._open_lane(engine, batch)
        graph = self._graph(lane, batch, uploads)
        if graph is not None:
            self._stream.launch(graph)
        else:
            self._enqueue(lane, batch, uploads)
        self._stream.synchronize()
        lane.runs += 1
        return {port.name: port.host.array[:batch].copy() for port in self._outputs}

    def _graph(self, lane: _Lane, batch: int, uploads: Sequence[Port], *, downloads: bool = True) -> Graph | None:
        """Return the recorded call, from the second call of a batch size on; None where it isn't recorded."""
        key = tuple(port.name for port in (*uploads, *(self._outputs if downloads else ())))
        if key not in lane.graphs and lane.runs and self._graphs:
            graph = self._record(lane, batch, uploads, downloads=downloads)
            if graph is not None:
                lane.graphs[key] = graph
        return lane.graphs.get(key)

    def _check_batch(self, batch: int) -> None:
        if not self.min_batch <= batch <= self.max_batch:
            raise ArtifactError(
                f"batch {batch} is outside this engine's range {self.min_batch} to {self.max_batch}; "
                "build it with a larger --batch"
            )

    def _fill(self, feed: Mapping[str, Array], ports: Sequence[Port]) -> int:
        """Copy the arrays into the pinned memory of `ports` and return their number of rows."""
        missing = {port.name for port in ports} ^ set(feed)
        if missing:
            raise ArtifactError(
                f"{self._file} takes {', '.join(port.name for port in ports)}, not {', '.join(feed) or 'nothing'}"
            )
        batches = {len(array) for array in feed.values()}
        batch = batches.pop()
        if batches:
            raise ArtifactError(f"{self._file} takes the same number of rows in each input")
        self._check_batch(batch)
        for port in ports:
            array, target = feed[port.name], port.host.array
            if array.shape[1:] != target.shape[1:] or array.dtype != target.dtype:
                raise ArtifactError(
                    f"{self._file} takes {port.name} as {target.dtype}{target.shape[1:]} per image, "
                    f"not {array.dtype}{array.shape[1:]}"
                )
            target[:batch] = array
        return batch

    def _open_lane(self, engine: trt.ICudaEngine, batch: int) -> _Lane:
        """Make the context of a batch size: shapes, addresses and working memory are set once and for all."""
        import tensorrt as trt

        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise DeviceError(f"{self._file}: no execution context could be made: {last_message(self._messages)}")
        context.set_device_memory(self._workspace.address, self._workspace.size)
        for port in self._inputs:
            self._demand(context.set_input_shape(port.name, (batch, *port.host.array.shape[1:])), port.name)
        for port in (*self._inputs, *self._outputs):
            self._demand(context.set_tensor_address(port.name, port.device.address), port.name)
        unknown = context.infer_shapes()
        if unknown:
            raise ArtifactError(f"{self._file}: the shapes of {', '.join(unknown)} are not determined by the images")
        for port in self._outputs:
            dims = context.get_tensor_shape(port.name)
            shape = tuple(int(dims[axis]) for axis in range(len(dims)))
            if shape != (batch, *port.host.array.shape[1:]):
                raise ArtifactError(
                    f"{self._file}: output {port.name} is {shape} for {batch} images; expected a row each"
                )
        while len(self._lanes) >= MOST_LANES:  # the oldest goes
            old = self._lanes.pop(next(iter(self._lanes)))
            for graph in old.graphs.values():
                graph.close()
        self._lanes[batch] = _Lane(context)
        return self._lanes[batch]

    def _enqueue(self, lane: _Lane, batch: int, uploads: Sequence[Port], *, downloads: bool = True) -> None:
        for port in uploads:
            self._stream.upload(port.device, port.host, port.size(batch))
        self._demand(lane.context.execute_async_v3(self._stream.handle), "execution")
        for port in self._outputs if downloads else ():
            self._stream.download(port.host, port.device, port.size(batch))

    def _record(self, lane: _Lane, batch: int, uploads: Sequence[Port], *, downloads: bool) -> Graph | None:
        """Return the call as a CUDA graph; where an engine can't be recorded, say so once and go on without."""
        try:
            return self._stream.capture(lambda: self._enqueue(lane, batch, uploads, downloads=downloads))
        except (DeviceError, ArtifactError) as error:
            self._graphs = False
            warnings.warn(f"{self._file} runs without CUDA graphs, a little slower: {error}", stacklevel=6)
            return None

    def _demand(self, worked: bool, what: str) -> None:
        if not worked:
            raise DeviceError(f"{self._file}: TensorRT refused {what}: {last_message(self._messages)}")

    def _close_lanes(self) -> None:
        graphs = [graph for lane in self._lanes.values() for graph in lane.graphs.values()]
        self._lanes.clear()
        with ExitStack() as stack:  # each is closed, also when another can't be
            for graph in graphs:
                stack.callback(graph.close)

    def _close_events(self) -> None:
        for event in self._events or ():
            event.close()

    def _close_resizer(self) -> None:
        if self._resizer is not None:
            self._resizer.close()

    def _drop(self, attribute: str) -> None:
        """Let go of a TensorRT object; it is destroyed with its last reference."""
        setattr(self, attribute, None)


def start(factory: Callable[[Any], Made], logger: Any) -> Made:
    """Return what a TensorRT factory makes. Raises `DeviceError` where TensorRT can't use the GPU or its driver."""
    try:
        return factory(logger)
    except (TypeError, RuntimeError) as error:  # pybind's words for a null pointer
        raise DeviceError(
            f"TensorRT can't be started ({error}): its CUDA version may be newer than the driver; update the driver, "
            f"or {install_command('tensorrt-cu12')}"
        ) from error


def open_model(path: Path, threads: int | None, device: Device | None) -> TensorRtRuntime:
    """Open an engine file on the current GPU.

    Raises `ArtifactError` when it was built for another TensorRT or GPU, or is not an engine, `DeviceError` without a
    usable GPU, `MissingPackageError` without TensorRT or cuda-python, `OptionError` for what engines don't have.
    """
    if device == "cpu":
        raise OptionError(f"{path.name} is an engine and runs on NVIDIA GPUs only; leave the device out")
    if threads is not None:
        raise OptionError(f"{path.name} is an engine and has no threads; leave their number out")
    trt = require("tensorrt", "running engines", "tensorrt")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"can't read {path}: {reason(error)}") from error
    facts = read_engine_info(path, content)
    cuda = import_cuda()
    gpu = cuda.gpu()
    if facts is not None:
        check_fits(facts, path.name, trt.__version__, gpu)
    host_code = facts is not None and facts.version_compatible
    return TensorRtRuntime(content, path.name, facts, cuda, gpu, host_code=host_code)
