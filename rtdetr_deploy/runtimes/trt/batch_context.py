"""One batch size of an engine: TensorRT's execution context, and the CUDA graphs of its calls.

Each batch size has a context of its own, because a recorded graph belongs to the state of one; those of a slot share
their working memory, since its calls are serialized.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rtdetr_deploy.errors import ArtifactError, DeviceError
from rtdetr_deploy.runtimes.protocol import Array
from rtdetr_deploy.runtimes.trt.bindings import Binding
from rtdetr_deploy.runtimes.trt.calls import Answer, ask
from rtdetr_deploy.runtimes.trt.cuda import CudaGraph, DeviceMemory, Stream
from rtdetr_deploy.words import plural

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass
class Shared:
    """What the contexts of a slot share.

    `replays` is False while calls are queued step by step, also where they are recorded already. `unrecordable` are the
    batch sizes whose calls can't be recorded, which were warned of; it outlasts their contexts.
    """

    file: str
    stream: Stream
    workspace: DeviceMemory
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    replays: bool = True
    unrecordable: set[int] = field(default_factory=set)

    def demand(self, call: Callable[[], Answer | None], what: str) -> Answer:
        """Return what a call of TensorRT returns. Raises `DeviceError` in its words where that does not work."""
        return ask(call, f"{self.file}: TensorRT refused {what}")


class BatchContext:
    """What runs `batch` rows; shapes, addresses and working memory are set once and for all."""

    def __init__(self, engine: trt.ICudaEngine, batch: int, shared: Shared) -> None:
        self.batch = batch
        self.context = _open_context(engine, batch, shared)
        self._shared = shared
        self._graphs: dict[tuple[str, ...], CudaGraph] = {}
        self._runs = 0

    def prepare(self, uploads: Sequence[Binding], *, downloads: bool = True) -> Callable[[], None]:
        """Return what queues a call that copies `uploads` in first and, with `downloads`, the outputs out.

        Once any call of this batch size has run it is one CUDA graph, where it can be recorded; there is one for each
        kind of call, recorded here, so that what is returned does nothing else.
        """
        if not self._shared.replays:
            return partial(self._enqueue, uploads, downloads)
        key = tuple(binding.name for binding in (*uploads, *(self._shared.outputs if downloads else ())))
        records = self._runs and self.batch not in self._shared.unrecordable
        if key not in self._graphs and records:
            graph = self._record(uploads, downloads)
            if graph is not None:
                self._graphs[key] = graph
        if key in self._graphs:
            return partial(self._shared.stream.launch, self._graphs[key])
        return partial(self._enqueue, uploads, downloads)

    def upload(self, bindings: Sequence[Binding]) -> None:
        """Queue copies of inputs to the GPU."""
        for binding in bindings:
            self._shared.stream.upload(binding.device, binding.host, binding.size(self.batch))

    def download(self) -> None:
        """Queue copies of the outputs from the GPU."""
        for binding in self._shared.outputs:
            self._shared.stream.download(binding.host, binding.device, binding.size(self.batch))

    def wait(self) -> None:
        """Wait for what is queued."""
        self._shared.stream.synchronize()
        self._runs += 1

    def finish(self) -> dict[str, Array]:
        """Wait for what is queued, and return copies of the outputs."""
        self.wait()
        return {binding.name: np.array(binding.host.array[: self.batch]) for binding in self._shared.outputs}

    def close(self) -> None:
        """Destroy the graphs; the context goes with the last reference to this."""
        graphs = list(self._graphs.values())
        self._graphs.clear()
        with ExitStack() as stack:  # each is closed, also when another can't be
            for graph in graphs:
                stack.callback(graph.close)

    def _enqueue(self, uploads: Sequence[Binding], downloads: bool) -> None:
        self.upload(uploads)
        self._shared.demand(lambda: self.context.execute_async_v3(self._shared.stream.handle), "execution")
        if downloads:
            self.download()

    def _record(self, uploads: Sequence[Binding], downloads: bool) -> CudaGraph | None:
        """Return the call as a CUDA graph; where that fails twice, say so and go on without for this batch size."""
        try:
            try:
                return self._capture(uploads, downloads)
            except DeviceError:  # another library's work may have come between, which does not happen again
                return self._capture(uploads, downloads)
        except DeviceError as error:
            self._shared.unrecordable.add(self.batch)
            # The file says it all: which line happened to make the second call tells nothing.
            number = plural(self.batch, "image")
            text = f"{self._shared.file} runs {number} at once without CUDA graphs, a little slower: {error}"
            warnings.warn(text, stacklevel=2)
            return None

    def _capture(self, uploads: Sequence[Binding], downloads: bool) -> CudaGraph:
        return self._shared.stream.capture(lambda: self._enqueue(uploads, downloads))


def _open_context(engine: trt.ICudaEngine, batch: int, shared: Shared) -> trt.IExecutionContext:
    import tensorrt as trt

    file = shared.file
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = ask(lambda: engine.create_execution_context(strategy), f"{file}: no execution context could be made")
    context.set_device_memory(shared.workspace.address, shared.workspace.size)
    for binding in shared.inputs:
        shape = (batch, *binding.host.array.shape[1:])
        shared.demand(partial(context.set_input_shape, binding.name, shape), binding.name)
    for binding in (*shared.inputs, *shared.outputs):
        shared.demand(partial(context.set_tensor_address, binding.name, binding.device.address), binding.name)
    unknown = shared.demand(context.infer_shapes, f"shapes for {plural(batch, 'image')}")
    if unknown:
        raise ArtifactError(f"{file}: the shapes of {', '.join(unknown)} are not determined by the images")
    for binding in shared.outputs:
        dims = context.get_tensor_shape(binding.name)
        shape = tuple(int(dims[axis]) for axis in range(len(dims)))
        if shape != (batch, *binding.host.array.shape[1:]):
            raise ArtifactError(
                f"{file}: output {binding.name} is {shape} for {plural(batch, 'image')}; expected a row for each"
            )
    return context
