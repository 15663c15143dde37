"""An RT-DETR model as it is timed: run by the Predictor, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rtdetr_bench.models.timed_model import SpanRuntime, Spans, real_precision
from rtdetr_deploy import ArtifactInfo, Detections, Predictor
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.words import plural


class RtDetrModel:
    """An RT-DETR model behind the interface of `TimedModel`; `runtime` is the Predictor's, where it tells its time.

    `untimed` is a Predictor of the same runtime without that, whose calls may overlap.
    """

    def __init__(
        self,
        predictor: Predictor,
        runtime: SpanRuntime | None,
        name: str,
        threshold: float,
        untimed: Predictor | None = None,
    ) -> None:
        self.name, self.batch, self.class_names = name, predictor.batch, predictor.class_names
        self.max_batch = runtime.max_batch if runtime is not None else None
        self.slots = runtime.slots if runtime is not None else 1
        self._predictor, self._runtime, self._threshold = predictor, runtime, threshold
        self._untimed = untimed or predictor
        info = predictor.info
        self.facts = {
            "kind": "RT-DETR",
            "runtime": predictor.runtime,
            "input": "x".join(map(str, predictor.input_size)),
        }
        if isinstance(info, ArtifactInfo):
            self.facts |= {"model": f"{info.variant}, {plural(info.layers, 'layer')}", "precision": info.precision}
        if predictor.arithmetic not in (None, "fp32"):
            self.facts["arithmetic"] = str(predictor.arithmetic)
        self.nms_input_boxes: int | None = None

    def inspect(self) -> None:
        """See `TimedModel.inspect`."""
        if self._runtime is not None:
            self.facts |= real_precision(self._runtime.runtime)

    def call(self, images: Sequence[ImageLike]) -> tuple[list[Detections], dict[str, float]]:
        """See `TimedModel.call`."""
        spans, predictor = Spans(), self._predictor
        frames = spans.timed("load", lambda: predictor.load(images))
        prepared = spans.timed("prepare", lambda: predictor.prepare(frames))
        outputs = spans.timed("infer", lambda: predictor.infer(prepared))
        if self._runtime is not None:
            self._runtime.split(spans)
        sizes = [frame.size for frame in frames]
        found = spans.timed("decode", lambda: predictor.decode(outputs, sizes, threshold=self._threshold))
        return found, spans

    def query(self, images: Sequence[ImageLike]) -> Callable[[], list[Detections]]:
        """See `TimedModel.query`."""
        predictor = self._untimed
        frames = predictor.load(images)
        prepared, sizes = predictor.prepare(frames), [frame.size for frame in frames]
        return lambda: predictor.decode(predictor.infer(prepared), sizes, threshold=self._threshold)

    def back_to_back(self, images: Sequence[ImageLike], calls: int) -> float | None:
        """See `TimedModel.back_to_back`."""
        if self._runtime is None:
            return None
        prepared = self._predictor.prepare(self._predictor.load(images))
        return self._runtime.back_to_back(lambda: self._predictor.infer(prepared), calls)

    def run(self, image: ImageLike) -> Callable[[float], Detections]:
        """Run the model on an image; return what decodes its outputs at a threshold."""
        frames = self._predictor.load([image])
        outputs = self._predictor.infer(self._predictor.prepare(frames))
        sizes = [frame.size for frame in frames]
        return lambda threshold: self._predictor.decode(outputs, sizes, threshold=threshold)[0]

    def close(self) -> None:
        """See `TimedModel.close`."""
        self._predictor.close()
