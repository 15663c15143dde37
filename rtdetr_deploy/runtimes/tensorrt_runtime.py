"""TensorRT engines on an NVIDIA GPU.

Everything is allocated when the engine is opened: pinned host memory and GPU memory for the largest batch. A call
copies the input in, runs, copies the outputs out; from the second call of a batch size on all that is one CUDA graph.

Each batch size has its own execution context, because a recorded graph belongs to the state of one; they share their
working memory, since calls are serialized. Written for TensorRT 10.x and 11.x.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rtdetr_deploy.artifact import METADATA_KEY
from rtdetr_deploy.engine_info import EngineInfo, read_engine_info
from rtdetr_deploy.errors import ArtifactError, DeviceError, MissingPackageError, OptionError
from rtdetr_deploy.runtimes import Array, Device, TensorSpec
from rtdetr_deploy.runtimes.cuda import Cuda, DeviceMemory, Gpu, Graph, PinnedArray, Stream, import_cuda
from rtdetr_deploy.runtimes.tensorrt_log import last_message, make_logger

if TYPE_CHECKING:
    import tensorrt as trt

Made = TypeVar("Made")

AMPERE = (8, 0)
"""The compute capability from which hardware-compatible engines run."""
MOST_LANES = 16
"""Batch sizes whose contexts and graphs are kept."""


@dataclass(frozen=True)
class _Port:
    """An input or output of the engine, with room for the largest batch on both sides of the bus."""

    name: str
    host: PinnedArray
    device: DeviceMemory

    def size(self, batch: int) -> int:
        """Bytes of the first `batch` rows."""
        return batch * int(self.host.array[:1].nbytes)


@dataclass
class _Lane:
    """What runs one batch size: its context, and its graph once recorded."""

    context: trt.IExecutionContext
    graph: Graph | None = None
    runs: int = 0


class TensorRtRuntime:
    """A loaded engine; see `Runtime`. Calls from several threads are run one after the other."""

    def __init__(
        self, content: bytes, name: str, facts: EngineInfo | None, cuda: Cuda, gpu: Gpu, *, host_code: bool = False
    ) -> None:
        import tensorrt as trt

        self._file = name
        self._cuda, self._gpu = cuda, gpu
        self._lock = threading.Lock()
        self._messages: list[str] = []
        self._lanes: dict[int, _Lane] = {}
        self._graphs = True
        self.name = f"TensorRT {trt.__version__} ({gpu.name})"
        self.metadata: Mapping[str, str] = {METADATA_KEY: facts.info.to_json()} if facts is not None else {}
        with ExitStack() as stack:  # closed in reverse order, here when opening fails, in `close` otherwise
            self._logger = make_logger(self._messages)
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
            self.smallest_batch, self.largest_batch = _batch_range(engine, name)
            self.inputs, self._inputs = self._make_ports(trt.TensorIOMode.INPUT, cuda, stack)
            self.outputs, self._outputs = self._make_ports(trt.TensorIOMode.OUTPUT, cuda, stack)
            stack.callback(self._close_lanes)
            self._resources = stack.pop_all()

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """See `Runtime.run`; raises `ArtifactError` for arrays that don't fit, or after `close`, else `DeviceError`."""
        with self._lock:
            engine = self._use()
            batch = self._fill(feed)
            lane = self._lanes.get(batch) or self._open_lane(engine, batch)
            if lane.graph is None and lane.runs and self._graphs:
                lane.graph = self._record(lane, batch)
            if lane.graph is not None:
                self._stream.launch(lane.graph)
            else:
                self._enqueue(lane, batch)
            self._stream.synchronize()
            lane.runs += 1
            return {port.name: port.host.array[:batch].copy() for port in self._outputs}

    def layers(self) -> list[Any]:
        """Return the engine inspector's list of layers: maps where the engine was built with details, else names.

        Shapes are those of the largest batch: without them the inspector of a dynamic engine tells no types. Raises
        `ArtifactError` when the inspector gives no list.
        """
        import tensorrt as trt

        with self._lock:
            engine = self._use()
            lane = self._lanes.get(self.largest_batch) or self._open_lane(engine, self.largest_batch)
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

    def _fill(self, feed: Mapping[str, Array]) -> int:
        """Copy the arrays into pinned memory and return their number of rows."""
        missing = {port.name for port in self._inputs} ^ set(feed)
        if missing:
            raise ArtifactError(f"{self._file} takes {', '.join(port.name for port in self._inputs)}, not {set(feed)}")
        batches = {len(array) for array in feed.values()}
        batch = batches.pop()
        if batches or not self.smallest_batch <= batch <= self.largest_batch:
            raise ArtifactError(
                f"batch {batch} is outside this engine's range {self.smallest_batch} to {self.largest_batch}; "
                "build it with a larger --batch"
            )
        for port in self._inputs:
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
            if old.graph is not None:
                old.graph.close()
        self._lanes[batch] = _Lane(context)
        return self._lanes[batch]

    def _enqueue(self, lane: _Lane, batch: int) -> None:
        for port in self._inputs:
            self._stream.upload(port.device, port.host, port.size(batch))
        self._demand(lane.context.execute_async_v3(self._stream.handle), "execution")
        for port in self._outputs:
            self._stream.download(port.host, port.device, port.size(batch))

    def _record(self, lane: _Lane, batch: int) -> Graph | None:
        """Return the call as a CUDA graph; where an engine can't be recorded, say so once and go on without."""
        try:
            return self._stream.capture(lambda: self._enqueue(lane, batch))
        except (DeviceError, ArtifactError) as error:
            self._graphs = False
            warnings.warn(f"{self._file} runs without CUDA graphs, a little slower: {error}", stacklevel=4)
            return None

    def _demand(self, worked: bool, what: str) -> None:
        if not worked:
            raise DeviceError(f"{self._file}: TensorRT refused {what}: {last_message(self._messages)}")

    def _make_ports(
        self, mode: trt.TensorIOMode, cuda: Cuda, stack: ExitStack
    ) -> tuple[tuple[TensorSpec, ...], tuple[_Port, ...]]:

        engine = self._engine
        assert engine is not None
        specs, ports = [], []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_mode(name) != mode:
                continue
            dims = engine.get_tensor_shape(name)
            shape = tuple(int(dims[axis]) for axis in range(len(dims)))
            dtype = _numpy_type(engine.get_tensor_dtype(name), name)
            if not shape or any(axis < 0 for axis in shape[1:]):
                raise ArtifactError(f"{self._file}: {name} has open axes {shape}; only the batch may be dynamic")
            host = PinnedArray(cuda, (self.largest_batch, *shape[1:]), dtype)
            stack.callback(host.close)
            device = DeviceMemory(cuda, int(host.array.nbytes))
            stack.callback(device.close)
            specs.append(TensorSpec(name, dtype, (None if shape[0] < 0 else shape[0], *shape[1:])))
            ports.append(_Port(name, host, device))
        return tuple(specs), tuple(ports)

    def _close_lanes(self) -> None:
        graphs = [lane.graph for lane in self._lanes.values() if lane.graph is not None]
        self._lanes.clear()
        with ExitStack() as stack:  # each is closed, also when another can't be
            for graph in graphs:
                stack.callback(graph.close)

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
            "or install rtdetr-deploy[tensorrt-cu12]"
        ) from error


def _numpy_type(kind: trt.DataType, name: str) -> np.dtype[Any]:
    import tensorrt as trt

    try:
        dtype: np.dtype[Any] = np.dtype(trt.nptype(kind))
    except TypeError as error:  # BF16 and FP8 have none
        raise ArtifactError(f"{name} is {kind}, which NumPy has no type for") from error
    return dtype


def open_model(path: Path, threads: int | None, device: Device | None) -> TensorRtRuntime:
    """Open an engine file on the current GPU.

    Raises `ArtifactError` when it was built for another TensorRT or GPU, or is none, `DeviceError` without a usable
    GPU, `MissingPackageError` without TensorRT or cuda-python, `OptionError` for what engines don't have.
    """
    if device == "cpu":
        raise OptionError(f"{path.name} is an engine and runs on NVIDIA GPUs only; leave the device out")
    if threads is not None:
        raise OptionError(f"{path.name} is an engine and has no threads; leave their number out")
    try:
        import tensorrt as trt
    except ImportError as error:
        raise MissingPackageError("running engines needs TensorRT: pip install 'rtdetr-deploy[tensorrt]'") from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"can't read {path}: {error.strerror or error}") from error
    facts = read_engine_info(path, content)
    cuda = import_cuda()
    gpu = cuda.gpu()
    if facts is not None:
        check_fits(facts, path.name, trt.__version__, gpu)
    host_code = facts is not None and facts.version_compatible
    return TensorRtRuntime(content, path.name, facts, cuda, gpu, host_code=host_code)


def check_fits(facts: EngineInfo, name: str, version: str, gpu: Gpu) -> None:
    """Raise `ArtifactError` when an engine was built for another TensorRT or another GPU than these."""
    built, here = _numbers(facts.tensorrt), _numbers(version)
    later = facts.version_compatible and here[0] == built[0] and here > built
    if version != facts.tensorrt and not later:
        raise ArtifactError(
            f"{name} was built by TensorRT {facts.tensorrt}, this is {version}; build it again here (engines built "
            "with --version-compatible run on later versions of the same major number)"
        )
    ampere = facts.hardware_compatible and _numbers(gpu.capability) >= AMPERE
    if gpu.capability != facts.capability and not ampere:
        raise ArtifactError(
            f"{name} was built for {facts.gpu} (compute capability {facts.capability}), this is {gpu.name} "
            f"({gpu.capability}); build it again here"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _batch_range(engine: trt.ICudaEngine, name: str) -> tuple[int, int]:
    """Return the smallest and largest batch of the first optimization profile."""
    import tensorrt as trt

    ranges = []
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT:
            smallest, _, largest = engine.get_tensor_profile_shape(tensor, 0)
            ranges.append((int(smallest[0]), int(largest[0])))
    if not ranges:
        raise ArtifactError(f"{name} has no inputs")
    return max(low for low, _ in ranges), min(high for _, high in ranges)
