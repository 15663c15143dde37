"""No engine is handed over unverified: what it detects, whether its rows agree, and which precision it really has.

Compared with ONNX Runtime running the same file, or for INT8 with FP32 (see `reference`). TensorRT has miscompiled
deformable attention silently (TensorRT issue 4813), and other exporters have called FP32 engines FP16 (rf-detr issue
1453): both must fail here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from rtdetr_deploy import Detections, Predictor
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.runtimes.trt.layer_precision import count_precisions
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime
from rtdetr_deploy.runtimes.trt.sidecar import EngineInfo
from rtdetr_deploy.words import plural
from rtdetr_export.verify.agreement import Agreement, compare
from rtdetr_export.verify.reference import Reference
from rtdetr_export.verify.report import Report
from rtdetr_export.verify.tolerances import LIMITS, MIN_COMPARED, MIN_PRECISION_SHARE, Limits


@dataclass(frozen=True)
class EngineReport(Report):
    """What an engine does and is.

    `agreements` with the `reference` on `images` images, by batch, which keep to `limits`; `replays` says how calls
    replayed from a CUDA graph agree with plain ones, by batch; `rows` how rows of one batch agree that were given the
    same image (None where there is one row). `engine_layers` counts the engine's layers by precision, `graph_nodes` the
    ONNX file's nodes that become such layers; `inspected` is the inspector's list of layers.
    """

    verdict = "was built, but is wrong"

    reference: str
    limits: Limits
    images: int
    agreements: dict[int, Agreement]
    replays: dict[int, Agreement]
    rows: Agreement | None
    engine_layers: dict[str, int]
    graph_nodes: dict[str, int]
    inspected: tuple[Any, ...] = field(default=(), repr=False)

    def problems(self) -> list[str]:
        """See `Report`."""
        return [*self._wrong_detections(), *self._wrong_repetitions(), *self._wrong_precision()]

    def _wrong_detections(self) -> Iterator[str]:
        for batch, agreement in self.agreements.items():
            if not agreement.keeps_to(self.limits):
                yield (
                    f"boxes and scores, batch {batch}: only {agreement.match_rate(-1):.3f} of {agreement.expected} "
                    f"detections are within {agreement.tolerances[-1]} of those of {self.reference}, "
                    f"{agreement.spurious} extra ({self._bar()}); "
                    'try `sampler="gather"`, or keep more in FP32 with `keep_fp32="/decoder/"`'
                )

    def _wrong_repetitions(self) -> Iterator[str]:
        for batch, agreement in self.replays.items():
            if not agreement.keeps_to(LIMITS["repeated"]):
                yield f"batch {batch}: a call replayed from its CUDA graph gives other detections than a plain one"
        if self.rows is not None and not self.rows.keeps_to(LIMITS["repeated"]):
            yield (
                f"equal images in one batch give other detections ({self.rows.match_rate():.3f} within "
                f'{self.rows.tolerances[0]}); TensorRT has miscompiled the graph: try `sampler="gather"`, `batch=1`, '
                "or another TensorRT version"
            )

    def _wrong_precision(self) -> Iterator[str]:
        if not self.engine_layers:
            yield "the inspector names no precision, so it can't be confirmed; is this a stripped engine?"
            return
        layers, nodes = sum(self.engine_layers.values()), max(1, sum(self.graph_nodes.values()))
        for name in ("int8", "fp16"):
            expected = self.graph_nodes.get(name, 0) / nodes
            if self.engine_layers.get(name, 0) / layers < MIN_PRECISION_SHARE * expected:
                counted = _listed(self.engine_layers)
                yield f"{expected:.0%} of the graph's layers are {name}, and the engine's layers are {counted}"
                return

    def _bar(self) -> str:
        limits = self.limits
        most = "" if limits.max_spurious is None else f", at most {limits.max_spurious:.1%} extra"
        return f"at least {limits.min_match_rate:.1%} must be{most}; {limits.allowance} of each are allowed"

    def in_full(self) -> str:
        """Return the figures, and what is wrong where something is."""
        return "\n".join([str(self), *(f"  wrong: {problem}" for problem in self.problems())])

    def __str__(self) -> str:
        lines = [f"{self.runtime} against {self.reference} on {plural(self.images, 'image')}:"]
        for batch, agreement in self.agreements.items():
            count = plural(agreement.expected, "detection")
            lines += [
                f"  batch {batch}: {agreement.match_rate(index):.4f} of {count} within {tolerance}"
                for index, tolerance in enumerate(agreement.tolerances)
            ]
            lines[-1] += f", {agreement.spurious} extra ({self._bar()})"
        same = all(agreement.keeps_to(LIMITS["repeated"]) for agreement in self.replays.values())
        told = "agree" if same else "differ"
        rows = "one image at a time" if self.rows is None else f"equal rows agree: {self.rows.match_rate():.4f}"
        layers = _listed(self.engine_layers)
        return "\n".join(
            [
                *lines,
                f"  replayed and plain calls {told}; {rows}; layers of the engine: {layers}",
            ]
        )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def verify_engine(
    engine: TensorRtRuntime,
    reference: Reference,
    engine_info: EngineInfo,
    images: Sequence[ImageLike],
    graph_nodes: dict[str, int],
) -> EngineReport:
    """Run `images` through both, at the min, opt and max batch, and look into the engine; both stay open."""
    one, other = Predictor(engine, threshold=0.0), Predictor(reference.runtime, threshold=0.0)
    expected = other.detect_batch(images)
    batches = sorted(set(engine_info.profile))
    agreements, replays = {}, {}
    for batch in batches:
        with engine.plain():
            plain = _detect(one, images, batch)
        replayed = _detect(one, images, batch)
        agreements[batch] = compare(expected, plain, reference.limits.tolerances, at_least=MIN_COMPARED)
        replays[batch] = _compare_repeated(plain, replayed)
    layers = engine.layers()
    return EngineReport(
        runtime=engine.name,
        reference=reference.name,
        limits=reference.limits,
        images=len(images),
        agreements=agreements,
        replays=replays,
        rows=_compare_rows(one, images, batches[-1]) if batches[-1] > 1 else None,
        engine_layers=count_precisions(layers),
        graph_nodes=graph_nodes,
        inspected=tuple(layers),
    )


def _compare_repeated(first: Sequence[Detections], again: Sequence[Detections]) -> Agreement:
    return compare(first, again, LIMITS["repeated"].tolerances, at_least=MIN_COMPARED)


def _detect(predictor: Predictor, images: Sequence[ImageLike], batch: int) -> list[Detections]:
    """Detect on `images`, always `batch` at a time; the last batch is filled with the first images."""
    found: list[Detections] = []
    for start in range(0, len(images), batch):
        rows = [images[(start + offset) % len(images)] for offset in range(batch)]
        found += _run(predictor, rows)
    return found[: len(images)]


def _run(predictor: Predictor, rows: Sequence[ImageLike]) -> list[Detections]:
    frames = predictor.load(rows)
    return predictor.decode(predictor.infer(predictor.prepare(frames)), [frame.size for frame in frames])


def _compare_rows(predictor: Predictor, images: Sequence[ImageLike], batch: int) -> Agreement:
    """Compare the rows of a batch that holds one image, with the first row, over all images."""
    first: list[Detections] = []
    others: list[Detections] = []
    for image in images:
        rows = _run(predictor, [image] * batch)
        first += rows[:1] * (batch - 1)
        others += rows[1:]
    return _compare_repeated(first, others)


def count_graph_nodes(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many convolutions and matrix products of a model have each precision."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    restored = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    counts: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            half = types.get(node.input[0]) == onnx.TensorProto.FLOAT16
            kind = "int8" if node.input[0] in restored else "fp16" if half else "fp32"
            counts[kind] = counts.get(kind, 0) + 1
    return counts
