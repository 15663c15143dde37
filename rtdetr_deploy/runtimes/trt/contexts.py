"""The batch sizes of an engine that are ready to run: those used last, as many as the GPU's memory bears."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

from rtdetr_deploy.runtimes.trt.batch_context import BatchContext, Shared

if TYPE_CHECKING:
    import tensorrt as trt

    from rtdetr_deploy.runtimes.trt.cuda import Gpu

MAX_CONTEXTS = 16
MIN_CONTEXTS = 2
MEMORY_PER_CONTEXT = 10**9
"""Bytes of a GPU's memory for each context: it keeps tens of MB beside the working memory, so all take some per cent.

15 on a T4; 7 on a Jetson of 8 GB, whose programs live in the same memory.
"""


class Contexts:
    """Contexts by batch size; the one that was not used for longest goes. `making` is held while one is made."""

    def __init__(self, shared: Shared, gpu: Gpu, making: AbstractContextManager[object] | None = None) -> None:
        self._shared = shared
        self._making = making or nullcontext()
        self._limit = max(MIN_CONTEXTS, min(MAX_CONTEXTS, gpu.memory // MEMORY_PER_CONTEXT))
        self._contexts: dict[int, BatchContext] = {}  # in the order of their last use

    def find(self, engine: trt.ICudaEngine, batch: int) -> BatchContext:
        """Return the context of a batch size, made where there is none. Nothing may be running in the others."""
        if batch not in self._contexts:
            with self._making:
                context = BatchContext(engine, batch, self._shared)
                while len(self._contexts) >= self._limit:
                    self._contexts.pop(next(iter(self._contexts))).close()
        else:
            context = self._contexts.pop(batch)
        self._contexts[batch] = context
        return context

    def close(self) -> None:
        """Destroy all contexts and their graphs."""
        with ExitStack() as stack:  # each is closed, also when another can't be
            for context in self._contexts.values():
                stack.callback(context.close)
        self._contexts.clear()
