"""What is timed: RT-DETR models and third-party detectors, behind one interface.

A call goes through these spans, each timed by itself:

    decode       read and decode the image file (absent for synthetic images)
    resize       resize, layout, scale
    copy         to the GPU and back, with what the host does for it (absent on CPUs)
    infer        the model; engines are measured by CUDA events, all else by the clock
    postprocess  threshold, class names, boxes in pixels of the image; for YOLOs also NMS that is not in the graph

The paper's span is infer + postprocess on prepared inputs, copies excluded (arXiv 2304.08069, section 5.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from rtdetr_bench.accuracy import open_any
from rtdetr_bench.models.nms import NmsOptions, suppress
from rtdetr_bench.models.yolo import NEEDS_NMS, NMS_METADATA, WHOLE, find_candidates, letterbox, recognize_yolo
from rtdetr_deploy import ArtifactInfo, Detections, OptionError, Predictor
from rtdetr_deploy.artifacts.weights_file import is_checkpoint
from rtdetr_deploy.images.frame import ImageLike, load_frame
from rtdetr_deploy.images.preprocess import Resizer
from rtdetr_deploy.runtimes import (
    Array,
    Feed,
    PreprocessingRuntime,
    Preprocessor,
    Runtime,
    RuntimeOptions,
    TimedRuntime,
    check_threads,
    open_runtime,
)
from rtdetr_deploy.runtimes.trt.layer_precision import count_precisions
from rtdetr_deploy.signature import has_detections
from rtdetr_deploy.words import plural, printable

SPANS = ("decode", "resize", "copy", "infer", "postprocess")
PAPER_SPAN = ("infer", "postprocess")
IN_GRAPH: dict[str, str] = {"inserted": "in the graph", "plugin": "in the graph (EfficientNMS_TRT)"}
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """How contestants are opened: the fields of `Predictor`, and thresholds, the same for all of them."""

    nms: NmsOptions = field(default_factory=NmsOptions)
    size: tuple[int, int] | None = None
    resizer: Resizer = "opencv"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:  # before anything is exported or opened
            check_threads(self.threads)


class Contestant(Protocol):
    """An opened model. `batch` is None where it is dynamic, and `max_batch` its limit there.

    `boxes` counts what the last call had to suppress (None where nothing is suppressed outside the graph).
    """

    name: str
    batch: int | None
    max_batch: int | None
    class_names: tuple[str, ...]
    facts: dict[str, str]
    boxes: int | None

    def inspect(self) -> None:
        """Add to `facts` what takes time to find out: an engine's real precision."""

    def call(self, images: Sequence[ImageLike]) -> tuple[list[Detections], dict[str, float]]:
        """Detect objects in a batch of images; return them, and the milliseconds of each span."""

    def close(self) -> None:
        """Free the model."""


class _Spans(dict[str, float]):
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
        self.info, self.metadata, self.max_batch = runtime.info, runtime.metadata, runtime.max_batch
        self.resizers = runtime.resizers if isinstance(runtime, PreprocessingRuntime) else frozenset()
        self.model: float | None = None

    def preprocessor(self, name: str, resizer: str, spec: Any) -> Preprocessor:
        """See `PreprocessingRuntime.preprocessor`; asked for `resizers` only."""
        assert isinstance(self.runtime, PreprocessingRuntime)
        return self.runtime.preprocessor(name, resizer, spec)

    def run(self, feed: Feed) -> dict[str, Array]:
        """See `Runtime.run`; what is prepared in the call (frames on the GPU) counts as copy."""
        if not isinstance(self.runtime, TimedRuntime):
            return self.runtime.run(feed)
        outputs, self.model = self.runtime.run_timed(feed)
        return outputs

    def close(self) -> None:
        """See `Runtime.close`."""
        self.runtime.close()

    def split(self, spans: _Spans) -> None:
        """Take what was not the model out of `infer`, as `copy`."""
        if self.model is not None:
            spans["copy"] = max(0.0, spans["infer"] - self.model)
            spans["infer"] = self.model


class Detr:
    """An RT-DETR model, run by the Predictor."""

    def __init__(self, predictor: Predictor, runtime: SpanRuntime | None, name: str, threshold: float) -> None:
        self.name, self.batch, self.class_names = name, predictor.batch, predictor.class_names
        self.max_batch = runtime.max_batch if runtime is not None else None
        self._predictor, self._runtime, self._threshold = predictor, runtime, threshold
        info = predictor.info
        self.facts = {
            "kind": "RT-DETR",
            "runtime": predictor.runtime,
            "input": "x".join(map(str, predictor.input_size)),
        }
        if isinstance(info, ArtifactInfo):
            self.facts |= {"model": f"{info.variant}, {plural(info.layers, 'layer')}", "precision": info.precision}
        self.boxes: int | None = None

    def inspect(self) -> None:
        """See `Contestant.inspect`."""
        if self._runtime is not None:
            self.facts |= real_precision(self._runtime.runtime)

    def call(self, images: Sequence[ImageLike]) -> tuple[list[Detections], dict[str, float]]:
        """See `Contestant.call`."""
        spans, predictor = _Spans(), self._predictor
        frames = spans.timed("decode", lambda: predictor.load(images))
        prepared = spans.timed("resize", lambda: predictor.prepare(frames))
        outputs = spans.timed("infer", lambda: predictor.infer(prepared))
        if self._runtime is not None:
            self._runtime.split(spans)
        sizes = [frame.size for frame in frames]
        found = spans.timed("postprocess", lambda: predictor.decode(outputs, sizes, threshold=self._threshold))
        return found, spans

    def prepare_decode(self, image: ImageLike) -> Callable[[float], Detections]:
        """Run the model on an image; return what decodes its outputs at a threshold."""
        frames = self._predictor.load([image])
        outputs = self._predictor.infer(self._predictor.prepare(frames))
        sizes = [frame.size for frame in frames]
        return lambda threshold: self._predictor.decode(outputs, sizes, threshold=threshold)[0]

    def close(self) -> None:
        """See `Contestant.close`."""
        self._predictor.close()


class Yolo:
    """A third-party detector: a YOLO, with NMS where it needs it, or a model that returns queries."""

    def __init__(self, runtime: SpanRuntime, name: str, nms: NmsOptions, size: tuple[int, int] | None = None) -> None:
        contract = recognize_yolo(runtime, name, size)
        self.name, self.batch, self.class_names = name, contract.batch, contract.class_names
        self.max_batch = runtime.max_batch
        self._runtime, self._contract, self._nms = runtime, contract, nms
        self._needs_nms = contract.layout in NEEDS_NMS
        self.facts = {
            "kind": "third-party RT-DETR" if contract.layout in WHOLE else f"YOLO ({contract.layout})",
            "runtime": runtime.name,
            "input": f"{contract.height}x{contract.width}",
            "NMS": nms.method if self._needs_nms else IN_GRAPH.get(contract.layout, "none"),
        }
        if NMS_METADATA in runtime.metadata:
            self.facts["NMS"] += f", {runtime.metadata[NMS_METADATA]}"
        self.boxes: int | None = None

    def inspect(self) -> None:
        """See `Contestant.inspect`."""
        self.facts |= real_precision(self._runtime.runtime)

    def call(self, images: Sequence[ImageLike]) -> tuple[list[Detections], dict[str, float]]:
        """See `Contestant.call`."""
        spans = _Spans()
        frames = spans.timed("decode", lambda: [load_frame(image) for image in images])
        prepared, placements = spans.timed("resize", lambda: letterbox(frames, self._contract))
        feed = {self._contract.images.name: prepared}
        outputs = spans.timed("infer", lambda: self._runtime.run(feed))
        self._runtime.split(spans)
        places = list(enumerate(placements))
        found = spans.timed(
            "postprocess", lambda: [self.decode(outputs, row, place.to_image, self._nms) for row, place in places]
        )
        if self._needs_nms:
            self.boxes = sum(count for _, count, _ in found)
        return [detections for detections, _, _ in found], spans

    def outputs_of(self, image: ImageLike) -> tuple[Mapping[str, Array], Callable[[Array], Array]]:
        """Return an image's raw outputs, and the function that moves boxes of the input into the image."""
        prepared, (place,) = letterbox([load_frame(image)], self._contract)
        rows = np.repeat(prepared, self.batch or 1, axis=0)
        return self._runtime.run({self._contract.images.name: rows}), place.to_image

    def decode(
        self, outputs: Mapping[str, Array], row: int, to_image: Callable[[Array], Array], nms: NmsOptions
    ) -> tuple[Detections, int, float]:
        """Return the detections of one image, its number of boxes before suppression, and the milliseconds of NMS."""
        candidates = find_candidates(outputs, row, self._contract, nms.confidence)
        start = time.perf_counter()
        kept = suppress(candidates, nms) if self._needs_nms else np.argsort(-candidates.scores, kind="stable")
        elapsed = 1000.0 * (time.perf_counter() - start)
        kept = kept[: nms.max_detections]
        labels = candidates.labels[kept]
        names = tuple(self.class_names[i] if i < len(self.class_names) else f"class {i}" for i in labels.tolist())
        boxes = to_image(candidates.boxes[kept])
        return Detections(boxes, candidates.scores[kept], labels, names), len(candidates), elapsed

    def close(self) -> None:
        """See `Contestant.close`."""
        self._runtime.close()

    def count_boxes(self, outputs: Mapping[str, Array], confidence: float) -> int:
        """Return how many boxes of the first image have a class above `confidence`."""
        candidates = find_candidates(outputs, 0, self._contract, confidence)
        return len(np.unique(candidates.boxes, axis=0))

    @property
    def needs_nms(self) -> bool:
        """Whether boxes are suppressed behind the model, and not in it."""
        return self._needs_nms


def open_contestant(path: Path, entry: Entry | None = None) -> Contestant:
    """Open a model file or a checkpoint: an RT-DETR where it is one, else a third-party detector.

    Raises `ArtifactError` when it is neither, or can't be run, `CheckpointError` for checkpoints.
    """
    entry = entry or Entry()
    threshold, name = entry.nms.confidence, printable(path.name)
    if is_checkpoint(path):
        predictor = open_any(path, size=entry.size, resizer=entry.resizer, threads=entry.threads)
        return Detr(predictor, None, name, threshold)
    runtime = SpanRuntime(open_runtime(path, options=RuntimeOptions(threads=entry.threads)))
    try:
        size = entry.size if None in runtime.inputs[0].shape[1:] else None  # the file knows better where it knows
        if not has_detections(runtime):
            return Yolo(runtime, name, entry.nms, size)
        return Detr(Predictor(runtime, resizer=entry.resizer, size=size), runtime, name, threshold)
    except BaseException:
        runtime.close()
        raise


def check_applies(contestants: Sequence[Contestant], entry: Entry) -> None:
    """Raise `OptionError` for a size, a resizer or a setting of NMS that none of the models would use."""
    usual, wanted = Entry(), "" if entry.size is None else "x".join(map(str, entry.size))
    inputs = {one.name: one.facts["input"] for one in contestants}
    unused = []
    if wanted and wanted not in inputs.values():
        fixed = ", ".join(f"{name} is fixed at {size}" for name, size in inputs.items())
        raise OptionError(f"size {wanted} would be ignored: {fixed}; leave it out, or export the model at that size")
    if entry.resizer != usual.resizer and not any(isinstance(one, Detr) for one in contestants):
        unused.append(f"resizer {entry.resizer} (third-party models are resized by OpenCV)")
    if not any(isinstance(one, Yolo) and one.needs_nms for one in contestants):
        told = "(no model here needs NMS outside its graph)"
        unused += [f"IoU threshold {entry.nms.iou:g} {told}"] * (entry.nms.iou != usual.nms.iou)
        unused += [f"NMS by {entry.nms.method} {told}"] * (entry.nms.method != usual.nms.method)
    if unused:
        raise OptionError(f"{unused[0]} would be ignored; leave it out")


def real_precision(runtime: Runtime) -> dict[str, str]:
    """Return what the engine inspector says about layers' precisions; nothing for other runtimes."""
    layers = getattr(runtime, "layers", None)
    if layers is None:
        return {}
    counts = count_precisions(layers())
    told = ", ".join(f"{plural(count, 'layer')} {kind}" for kind, count in sorted(counts.items()))
    return {"precision": told or "the inspector doesn't tell"}
