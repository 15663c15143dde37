"""No engine is handed over unverified: what it detects, whether its rows agree, and which precision it really has.

Compared with ONNX Runtime running the same file. TensorRT has miscompiled deformable attention silently (TensorRT issue
4813), and other exporters have called FP32 engines FP16 (rf-detr issue 1453): both must fail here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtdetr_deploy import Predictor
from rtdetr_deploy.artifact import ArtifactInfo
from rtdetr_deploy.errors import ExportError
from rtdetr_deploy.runtimes import Runtime
from rtdetr_deploy.runtimes.tensorrt_runtime import TensorRtRuntime
from rtdetr_deploy.sources import ImageLike
from rtdetr_export.agreement import Agreement, Tolerance, compare

TOLERANCES = (Tolerance(0.5, 0.01), Tolerance(2.0, 0.05))
REQUIRED = 0.98
"""Share of detections within the widest tolerance. FP16 kernels sum in another order than ONNX Runtime."""
LEAST = 20
ROW_TOLERANCE = 1e-3
"""Largest difference of boxes (in [0, 1]) and scores between rows of a batch that were given the same image."""
LOW_SHARE = 0.5
"""Least share of convolutions and matrix products that must have the precision that was asked for."""

_KINDS = {"fp32": r"\b(fp32|float32|float)\b", "fp16": r"\b(fp16|float16|half)\b", "int8": r"\bint8\b"}
_COMPUTE = re.compile(r"conv|gemm|matrix|matmul|matrixmultiply|myelin", re.IGNORECASE)


@dataclass(frozen=True)
class EngineReport:
    """Agreement with ONNX Runtime, the largest difference between equal rows, and layers by precision.

    `rows` is None where the engine takes one image only.
    """

    runtime: str
    precision: str
    images: int
    agreement: Agreement
    rows: float | None
    layers: dict[str, int]

    def problems(self) -> list[str]:
        """Return what is wrong with the engine, in words; empty when it may be handed over."""
        found = []
        agreement = self.agreement
        if agreement.share(-1) < REQUIRED:
            found.append(
                f"boxes and scores: only {agreement.share(-1):.3f} of {agreement.wanted} detections are within "
                f"{agreement.tolerances[-1]} of ONNX Runtime's; try --sampler gather, or keep more in FP32 with "
                "--keep-fp32 '/decoder/'"
            )
        if self.rows is not None and not self.rows <= ROW_TOLERANCE:
            found.append(
                f"equal images in one batch give outputs that differ by {self.rows:.3g}; TensorRT has miscompiled the "
                "graph: try --sampler gather, --batch 1, or another TensorRT version"
            )
        asked, compute = self.layers.get(self.precision, 0), sum(self.layers.values())
        if not compute:
            found.append("the inspector names no precision, so it can't be confirmed; is this a stripped engine?")
        elif asked < LOW_SHARE * compute:
            counted = ", ".join(f"{count} {name}" for name, count in sorted(self.layers.items()))
            found.append(f"{self.precision} was asked for, and the engine's layers are {counted}")
        return found

    def require(self, name: str) -> None:
        """Raise `ExportError` when anything is wrong."""
        found = self.problems()
        if found:
            raise ExportError(f"{name} was built and is wrong, so it was not written: " + "; ".join(found))

    def __str__(self) -> str:
        agreement = self.agreement
        lines = [f"{self.runtime} against ONNX Runtime on {self.images} images:"]
        lines += [
            f"  {agreement.share(index):8.4f} of {agreement.wanted} detections within {tolerance}"
            for index, tolerance in enumerate(agreement.tolerances)
        ]
        rows = "one image at a time" if self.rows is None else f"equal rows differ by {self.rows:.1e}"
        layers = ", ".join(f"{count} {name}" for name, count in sorted(self.layers.items()))
        return "\n".join([*lines, f"  {rows}; layers of the engine: {layers}"])


def verify_engine(
    engine: TensorRtRuntime, reference: Runtime, info: ArtifactInfo, images: Sequence[ImageLike]
) -> EngineReport:
    """Run `images` through both and look into the engine; both stay open."""
    one, other = Predictor(engine, threshold=0.0), Predictor(reference, threshold=0.0)
    expected, found = other.detect_batch(images), one.detect_batch(images)
    agreement = compare(expected, found, TOLERANCES, least=LEAST)
    layers = count_precisions(engine.layers())
    return EngineReport(engine.name, info.precision, len(images), agreement, _rows(engine, one, images), layers)


def _rows(engine: TensorRtRuntime, predictor: Predictor, images: Sequence[ImageLike]) -> float | None:
    """Return the largest difference between the outputs of one image in every row of a full batch."""
    batch = engine.largest_batch
    if batch < 2:
        return None
    (name,) = (spec.name for spec in engine.inputs)
    largest = 0.0
    for image in images:
        prepared = predictor.prepare(predictor.load([image]))[:1]
        outputs = engine.run({name: np.repeat(prepared, batch, axis=0)})
        for array in outputs.values():
            difference = np.abs(array.astype(np.float64) - array[:1].astype(np.float64)).max(initial=0.0)
            largest = max(largest, float(difference)) if np.isfinite(difference) else float("inf")
    return largest


def count_precisions(layers: Sequence[Any]) -> dict[str, int]:
    """Return how many computing layers of the inspector's list give out each precision.

    A layer counts as the lowest precision among its inputs' types. Layers given as bare names tell nothing.
    """
    counts: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, dict) or not _COMPUTE.search(f"{layer.get('LayerType', '')} {layer.get('Name', '')}"):
            continue
        types = " ".join(
            str(value.get("Format/Datatype", value.get("Format", ""))) for value in layer.get("Inputs", [])
        )
        for name in ("int8", "fp16", "fp32"):
            if re.search(_KINDS[name], types, re.IGNORECASE):
                counts[name] = counts.get(name, 0) + 1
                break
    return counts
