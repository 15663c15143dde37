"""What is timed: RT-DETR models and third-party detectors, behind one interface.

A call goes through these spans, each timed by itself; they are the Predictor's four stages, and the copies between:

    load     read and decode the image file (absent for synthetic images)
    prepare  resize, layout, scale
    copy     to the GPU and back, with what the host does for it (absent on CPUs)
    infer    the model; engines are measured by CUDA events, all else by the clock
    decode   threshold, class names, boxes in pixels of the image; for YOLOs also NMS that is not in the graph

The paper's span is infer + decode on prepared inputs, copies excluded (arXiv 2304.08069, section 5.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from rtdetr_deploy import Detections
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.runtimes import Array, Feed, PreprocessingRuntime, Preprocessor, Runtime, TimedRuntime
from rtdetr_deploy.runtimes.trt.layer_precision import count_precisions
from rtdetr_deploy.words import plural

SPANS = ("load", "prepare", "copy", "infer", "decode")
PAPER_SPAN = ("infer", "decode")
T = TypeVar("T")


class TimedModel(Protocol):
    """An opened model. `batch` is None where it is dynamic, and `max_batch` its limit there.

    `facts` are what reports say about it, by column. `nms_input_boxes` counts what NMS was given in the last call (None
    where there is no NMS outside the graph). `slots` is the number of calls that its runtime overlaps.
    """

    name: str
    batch: int | None
    max_batch: int | None
    class_names: tuple[str, ...]
    facts: dict[str, str]
    nms_input_boxes: int | None
    slots: int

    def inspect(self) -> None:
        """Add to `facts` what takes time to find out: an engine's real precision."""

    def call(self, images: Sequence[ImageLike]) -> tuple[list[Detections], dict[str, float]]:
        """Detect objects in a batch of images; return them, and the milliseconds of each span."""

    def query(self, images: Sequence[ImageLike]) -> Callable[[], list[Detections]]:
        """Load and prepare a batch, filled up to a fixed one; return what detects its objects whenever it is called.

        It may be called from several threads, and takes no times that would keep calls from overlapping.
        """

    def back_to_back(self, images: Sequence[ImageLike], calls: int) -> float | None:
        """Return the mean milliseconds of the model on its device, `calls` of them queued without a gap.

        None where the runtime can't tell.
        """

    def close(self) -> None:
        """Free the model."""


class Spans(dict[str, float]):
    """Milliseconds by span."""

    def timed(self, span: str, work: Callable[[], T]) -> T:
        """Return what `work` does, and note how long it took."""
        start = time.perf_counter()
        result = work()
        self[span] = 1000.0 * (time.perf_counter() - start)
        return result


class SpanRuntime:
    """A runtime that remembers how long the model itself took in the last call, where its engine can tell."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.name, self.file = runtime.name, runtime.file
        self.inputs, self.outputs = runtime.inputs, runtime.outputs
        self.info, self.metadata = runtime.info, runtime.metadata
        self.min_batch, self.max_batch = runtime.min_batch, runtime.max_batch
        self.resizers = runtime.resizers if isinstance(runtime, PreprocessingRuntime) else frozenset()
        self.slots = int(getattr(runtime, "slots", 1))
        self.arithmetic: str | None = getattr(runtime, "arithmetic", None)
        self.model: float | None = None
        self._calls = 1

    def preprocessor(self, name: str, resizer: str, spec: Any) -> Preprocessor:
        """See `PreprocessingRuntime.preprocessor`; asked for `resizers` only."""
        assert isinstance(self.runtime, PreprocessingRuntime)
        return self.runtime.preprocessor(name, resizer, spec)

    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`; what is prepared in the call (frames on the GPU) counts as copy."""
        if not isinstance(self.runtime, TimedRuntime):
            return self.runtime.run(feed)
        outputs, self.model = self.runtime.run_timed(feed, self._calls)
        return outputs

    def back_to_back(self, run: Callable[[], object], calls: int) -> float | None:
        """Return the mean milliseconds of `calls` runs of the model without a gap, in what `run` asks this runtime for.

        None where the engine can't tell its own time.
        """
        if not isinstance(self.runtime, TimedRuntime):
            return None
        self._calls = calls
        try:
            run()
        finally:
            self._calls = 1
        return self.model

    def close(self) -> None:
        """See `Runtime.close`."""
        self.runtime.close()

    def split(self, spans: Spans) -> None:
        """Take what was not the model out of `infer`, as `copy`."""
        if self.model is not None:
            spans["copy"] = max(0.0, spans["infer"] - self.model)
            spans["infer"] = self.model


def real_precision(runtime: Runtime) -> dict[str, str]:
    """Return what the engine inspector says about layers' precisions; nothing for other runtimes."""
    layers = getattr(runtime, "layers", None)
    if layers is None:
        return {}
    counts = count_precisions(layers())
    told = ", ".join(f"{plural(count, 'layer')} {kind}" for kind, count in sorted(counts.items()))
    return {"precision": told or "the inspector doesn't tell"}
