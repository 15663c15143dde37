"""No engine is handed over unverified: what it detects, whether its rows agree, and which precision it really has.

Compared with ONNX Runtime running the same file. TensorRT has miscompiled deformable attention silently (TensorRT issue
4813), and other exporters have called FP32 engines FP16 (rf-detr issue 1453): both must fail here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from rtdetr_deploy import Detections, Predictor
from rtdetr_deploy.errors import ExportError
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.runtimes import Runtime
from rtdetr_deploy.runtimes.trt.layer_precision import count_precisions
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime
from rtdetr_deploy.runtimes.trt.sidecar import EngineInfo
from rtdetr_deploy.words import plural
from rtdetr_export.verify.agreement import Agreement, Tolerance, compare

TOLERANCES = (Tolerance(0.5, 0.01), Tolerance(2.0, 0.05))
REQUIRED = 0.98
"""Share of detections within the widest tolerance. FP16 kernels sum in another order than ONNX Runtime."""
LEAST = 20
SAME = (Tolerance(0.1, 1e-3),)
"""What rows of a batch that were given the same image may differ by, and a recorded call from a plain one."""
MOST_UNASKED = 0.02
"""Share of confident detections that ONNX Runtime doesn't make."""
LOW_SHARE = 0.8
"""Least part of the graph's layers of a precision that the engine must have in that precision: kernels are fused."""


@dataclass(frozen=True)
class EngineReport:
    """What an engine does and is.

    `agreements` with ONNX Runtime by batch; `replays` says how calls from a recorded graph agree with plain ones, by
    batch; `rows` how rows of one batch agree that were given the same image (None where there is one row). `layers` of
    the engine by precision, `graph` those of the ONNX file.
    """

    runtime: str
    precision: str
    images: int
    agreements: dict[int, Agreement]
    replays: dict[int, Agreement]
    rows: Agreement | None
    layers: dict[str, int]
    graph: dict[str, int]

    def problems(self) -> list[str]:
        """Return what is wrong with the engine, in words; empty when it may be handed over."""
        found = []
        for batch, agreement in self.agreements.items():
            if agreement.share(-1) < REQUIRED or agreement.unasked > MOST_UNASKED * agreement.wanted:
                found.append(
                    f"boxes and scores, batch {batch}: only {agreement.share(-1):.3f} of {agreement.wanted} detections "
                    f"are within {agreement.tolerances[-1]} of ONNX Runtime's, {agreement.unasked} are new; try "
                    "--sampler gather, or keep more in FP32 with --keep-fp32 '/decoder/'"
                )
        for batch, agreement in self.replays.items():
            if agreement.share() < REQUIRED:
                found.append(f"batch {batch}: a recorded call gives other detections than a plain one (a stale graph?)")
        if self.rows is not None and self.rows.share() < REQUIRED:
            found.append(
                f"equal images in one batch give other detections ({self.rows.share():.3f} within "
                f"{self.rows.tolerances[0]}); TensorRT has miscompiled the graph: try --sampler gather, --batch 1, or "
                "another TensorRT version"
            )
        return found + self._precision_problems()

    def _precision_problems(self) -> list[str]:
        counted = ", ".join(f"{count} {name}" for name, count in sorted(self.layers.items()))
        if not self.layers:
            return ["the inspector names no precision, so it can't be confirmed; is this a stripped engine?"]
        total, in_graph = sum(self.layers.values()), max(1, sum(self.graph.values()))
        for name in ("int8", "fp16"):
            wanted = self.graph.get(name, 0) / in_graph
            if self.layers.get(name, 0) / total < LOW_SHARE * wanted:
                return [f"{wanted:.0%} of the graph's layers are {name}, and the engine's layers are {counted}"]
        return []

    def require(self, name: str) -> None:
        """Raise `ExportError` when anything is wrong."""
        found = self.problems()
        if found:
            raise ExportError(f"{name} was built and is wrong, so it was not written: " + "; ".join(found))

    def __str__(self) -> str:
        lines = [f"{self.runtime} against ONNX Runtime on {plural(self.images, 'image')}:"]
        for batch, agreement in self.agreements.items():
            lines += [
                f"  batch {batch}: {agreement.share(index):.4f} of {agreement.wanted} detections within {tolerance}"
                for index, tolerance in enumerate(agreement.tolerances)
            ]
        rows = "one image at a time" if self.rows is None else f"equal rows agree: {self.rows.share():.4f}"
        layers = ", ".join(f"{count} {name}" for name, count in sorted(self.layers.items()))
        return "\n".join([*lines, f"  recorded and plain calls agree; {rows}; layers of the engine: {layers}"])


def verify_engine(
    engine: TensorRtRuntime,
    reference: Runtime,
    facts: EngineInfo,
    images: Sequence[ImageLike],
    graph: dict[str, int],
) -> EngineReport:
    """Run `images` through both, at the smallest, best and largest batch, and look into the engine; both stay open."""
    one, other = Predictor(engine, threshold=0.0), Predictor(reference, threshold=0.0)
    expected = other.detect_batch(images)
    batches = sorted(set(facts.profile))
    agreements, replays = {}, {}
    for batch in batches:
        plain, recorded = (_detect(one, images, batch) for _ in range(2))
        agreements[batch] = compare(expected, plain, TOLERANCES, least=LEAST)
        replays[batch] = compare(plain, recorded, SAME, least=LEAST)
    return EngineReport(
        runtime=engine.name,
        precision=facts.info.precision,
        images=len(images),
        agreements=agreements,
        replays=replays,
        rows=_compare_rows(one, images, batches[-1]) if batches[-1] > 1 else None,
        layers=count_precisions(engine.layers()),
        graph=graph,
    )


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
    return compare(first, others, SAME, least=LEAST)


def count_in_graph(path: Path) -> dict[str, int]:
    """Return how many convolutions and matrix products of an ONNX file have each precision."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    restored = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    counts: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            half = types.get(node.input[0]) == onnx.TensorProto.FLOAT16
            kind = "int8" if node.input[0] in restored else "fp16" if half else "fp32"
            counts[kind] = counts.get(kind, 0) + 1
    return counts
