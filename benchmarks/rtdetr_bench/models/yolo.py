"""A third-party detector as it is timed: a YOLO, with NMS where it needs it, or a model that returns queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rtdetr_bench.models.nms import NmsOptions, suppress
from rtdetr_bench.models.timed_model import SpanRuntime, Spans, real_precision
from rtdetr_bench.models.yolo_layouts import NMS_METADATA, recognize_yolo
from rtdetr_deploy import Detections
from rtdetr_deploy.images.frame import Frame, ImageLike, load_frame
from rtdetr_deploy.images.preprocess import HostPreprocessor, to_image
from rtdetr_deploy.runtimes import Array


class YoloModel:
    """A third-party detector behind the interface of `TimedModel`."""

    def __init__(self, runtime: SpanRuntime, name: str, nms: NmsOptions, size: tuple[int, int] | None = None) -> None:
        signature = recognize_yolo(runtime, name, size)
        self.name, self.batch, self.class_names = name, signature.batch, signature.class_names
        self.max_batch, self.slots = runtime.max_batch, runtime.slots
        self._runtime, self._signature, self._nms = runtime, signature, nms
        self._spec = signature.preprocess
        self._prepare = HostPreprocessor(self._spec)
        layout = signature.layout
        self.facts = {
            "kind": "third-party RT-DETR" if layout.stretched else f"YOLO ({layout.name})",
            "runtime": runtime.name,
            "input": f"{signature.height}x{signature.width}",
            "NMS": nms.method if layout.needs_nms else layout.nms_in_graph,
        }
        if NMS_METADATA in runtime.metadata:
            self.facts["NMS"] += f", {runtime.metadata[NMS_METADATA]}"
        self.nms_input_boxes: int | None = None

    @property
    def needs_nms(self) -> bool:
        """Whether boxes are suppressed behind the model, and not in it."""
        return self._signature.layout.needs_nms

    def inspect(self) -> None:
        """See `TimedModel.inspect`."""
        self.facts |= real_precision(self._runtime.runtime)

    def call(self, images: Sequence[ImageLike]) -> tuple[list[Detections], dict[str, float]]:
        """See `TimedModel.call`."""
        spans = Spans()
        frames = spans.timed("load", lambda: [load_frame(image) for image in images])
        prepared = spans.timed("prepare", lambda: self._prepare(frames, len(frames)))
        feed = {self._signature.images.name: prepared}
        outputs = spans.timed("infer", lambda: self._runtime.run(feed))
        self._runtime.split(spans)
        found = spans.timed(
            "decode",
            lambda: [self.decode(outputs, row, self._mover(frame.size), self._nms) for row, frame in enumerate(frames)],
        )
        if self.needs_nms:
            self.nms_input_boxes = sum(count for _, count, _ in found)
        return [detections for detections, _, _ in found], spans

    def query(self, images: Sequence[ImageLike]) -> Callable[[], list[Detections]]:
        """See `TimedModel.query`."""
        frames = [load_frame(image) for image in images]
        feed, run = {self._signature.images.name: self._rows(frames)}, self._runtime.runtime.run

        def answer() -> list[Detections]:
            outputs = run(feed)
            return [self.decode(outputs, row, self._mover(one.size), self._nms)[0] for row, one in enumerate(frames)]

        return answer

    def back_to_back(self, images: Sequence[ImageLike], calls: int) -> float | None:
        """See `TimedModel.back_to_back`."""
        feed = {self._signature.images.name: self._rows([load_frame(image) for image in images])}
        return self._runtime.back_to_back(lambda: self._runtime.run(feed), calls)

    def _rows(self, frames: Sequence[Frame]) -> Array:
        """Return the frames as the model's input, the rest of a fixed batch being zero."""
        return self._prepare(frames, max(len(frames), self.batch or 1))

    def outputs_of(self, image: ImageLike) -> tuple[Mapping[str, Array], Callable[[Array], Array]]:
        """Return an image's raw outputs, and the function that moves boxes of the input into the image."""
        frame = load_frame(image)
        rows = np.repeat(self._prepare([frame], 1), self.batch or 1, axis=0)
        return self._runtime.run({self._signature.images.name: rows}), self._mover(frame.size)

    def _mover(self, image: tuple[int, int]) -> Callable[[Array], Array]:
        """Return the function that moves xyxy boxes in pixels of the input into an image of this (height, width)."""
        height, width = self._spec.size
        input_size = np.array((width, height) * 2, np.float32)
        return lambda boxes: to_image((boxes / input_size).astype(np.float32, copy=False), self._spec, image)

    def decode(
        self, outputs: Mapping[str, Array], row: int, to_image: Callable[[Array], Array], nms: NmsOptions
    ) -> tuple[Detections, int, float]:
        """Return the detections of one image, its number of boxes before suppression, and the milliseconds of NMS."""
        candidates = self._signature.find_candidates(outputs, row, nms.threshold)
        start = time.perf_counter()
        kept = suppress(candidates, nms) if self.needs_nms else np.argsort(-candidates.scores, kind="stable")
        elapsed = 1000.0 * (time.perf_counter() - start)
        kept = kept[: nms.max_detections]
        labels = candidates.labels[kept]
        names = tuple(self.class_names[i] if i < len(self.class_names) else f"class {i}" for i in labels.tolist())
        boxes = to_image(candidates.boxes[kept])
        return Detections(boxes, candidates.scores[kept], labels, names), len(candidates), elapsed

    def count_boxes(self, outputs: Mapping[str, Array], threshold: float) -> int:
        """Return how many boxes of the first image have a class above `threshold`."""
        candidates = self._signature.find_candidates(outputs, 0, threshold)
        return len(np.unique(candidates.boxes, axis=0))

    def close(self) -> None:
        """See `TimedModel.close`."""
        self._runtime.close()
