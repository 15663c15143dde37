"""What FP16 does to detections, by how it is placed, and INT8, by how much of the model is in it.

FP16 is placed by rtdetr-export, everywhere, and by onnxconverter-common. With calibration images follows the curve of
INT8 as rtdetr-export draws it, here with the AP at each of its points. Every file is run by ONNX Runtime on the CPU and
compared with the FP32 torch model, detection by detection.
onnxconverter-common is a peer, not a dependency: its row is there when it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir

from rtdetr_bench.accuracy import open_any
from rtdetr_bench.options import EvaluationSet, PrecisionStudyOptions
from rtdetr_deploy import Detections, __version__
from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo
from rtdetr_deploy.evaluate.coco import average_precision, require_evaluator
from rtdetr_export import ExportOptions, export_onnx
from rtdetr_export.graph import POSTPROCESS
from rtdetr_export.pipeline import TracedCheckpoint, trace_checkpoint
from rtdetr_export.precision.fp16 import to_fp16
from rtdetr_export.precision.int8 import quantize
from rtdetr_export.precision.placement import Placement
from rtdetr_export.precision.reduce import choose_images, measure_quantizable
from rtdetr_export.precision.sensitivity import choose_blocks
from rtdetr_export.simplify import serialize
from rtdetr_export.verify.agreement import Agreement, compare
from rtdetr_export.verify.tolerances import TOLERANCES

PIXELS = "first convolution"
"""The FP32 scope of the convolution that reads pixels."""


@dataclass(frozen=True)
class PrecisionRow:
    """A file: its AP, what became of the reference's detections, its size in MB, and the share of work in INT8."""

    name: str
    ap: float
    agreement: Agreement
    megabytes: float
    int8: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return the row as plain numbers and text."""
        return {
            "file": self.name,
            "int8": round(self.int8, 4),
            "AP": self.ap,
            "megabytes": round(self.megabytes, 1),
            "matched": {str(t): self.agreement.match_rate(index) for index, t in enumerate(TOLERANCES)},
            "spurious": self.agreement.spurious,
        }


PLACEMENTS: dict[str, Callable[[Placement], Placement]] = {
    "FP16 by rtdetr-export": lambda placement: placement,
    "the same, first convolution in FP16 too": lambda placement: placement.without(PIXELS),
    "FP16 everywhere": lambda placement: placement.only(POSTPROCESS.name),
}


def study_precision(
    options: PrecisionStudyOptions, *, on_row: Callable[[PrecisionRow], object] = lambda _: None
) -> list[PrecisionRow]:
    """Return a row per way to place FP16 and per point of INT8's curve, the FP32 file first.

    `on_row` is called with each of them as soon as it is known. Raises what opening, exporting and the annotations do.
    """
    require_evaluator()
    rows: list[PrecisionRow] = []
    with TemporaryDirectory() as folder:
        expected, _ = _detect(options.weights, options.data)
        for name, file, int8 in _files(options.weights, options.calibration, Path(folder)):
            found, ap = _detect(file, options.data)
            rows.append(PrecisionRow(name, ap, compare(expected, found), file.stat().st_size / 1e6, int8))
            on_row(rows[-1])
    return rows


def _files(weights: Path, calibration: Path | None, folder: Path) -> Iterator[tuple[str, Path, float]]:
    """Yield the name of each file, the file, and the share of its work that is in INT8."""
    single, trial = export_onnx(ExportOptions(weights, Path(folder, "single.onnx"))).path, Path(folder, "trial.onnx")
    yield "FP32", single, 0.0
    traced = trace_checkpoint(ExportOptions(weights))
    for name, change in PLACEMENTS.items():
        model = traced.graph.clone()
        to_fp16(model, keep=change(traced.placement).kept)
        yield name, _save(model, traced.info, trial), 0.0
    if _convert(single, trial):
        yield "onnxconverter-common", trial, 0.0
    if calibration is None:
        return
    yield from _quantized(traced, calibration, trial)


def _quantized(traced: TracedCheckpoint, calibration: Path, trial: Path) -> Iterator[tuple[str, Path, float]]:
    """Yield the points of INT8's curve."""
    graph, info = traced.graph, traced.info
    pictures = choose_images(calibration, info.height, info.width)
    nodes, scales = measure_quantizable(graph, traced.placement, info, pictures)
    plan = choose_blocks(graph, nodes, scales, pictures)
    for count, point in enumerate(plan.curve, start=1):
        changed = graph.clone()
        quantize(changed, [node for node in nodes if node.block in point.blocks], scales)
        mark = "* " * (count == plan.chosen)
        yield f"{mark}INT8 to {point.blocks[-1]}", _save(changed, info, trial), point.macs


def _save(model: onnx_ir.Model, info: ArtifactInfo, path: Path) -> Path:
    path.write_bytes(serialize(model, {METADATA_KEY: info.to_json()}, __version__))
    return path


def _convert(source: Path, target: Path) -> bool:
    """Convert with onnxconverter-common as its documentation says; False where it is not installed."""
    try:
        from onnxconverter_common import float16
    except ImportError:
        return False
    onnx.save(float16.convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), str(target))
    return True


def _detect(file: Path, data: EvaluationSet) -> tuple[list[Detections], float]:
    with open_any(file) as predictor:
        truth = data.read(predictor.class_names)
        found = predictor.detect_batch([path for _, path in truth.images], threshold=0.0)
        return found, average_precision(found, truth, predictor.class_names).ap


def precision_heads() -> str:
    """Return the head of the table that `format_precision` makes lines of."""
    return f"{'file':<50}{'INT8':>7}{'AP':>8}{'MB':>7}" + "".join(f"{t!s:>14}" for t in TOLERANCES) + f"{'extra':>9}"


def format_precision(row: PrecisionRow) -> str:
    """Return a file's line of the table."""
    shares = "".join(f"{row.agreement.match_rate(index):>14.4f}" for index in range(len(TOLERANCES)))
    return f"{row.name:<50}{row.int8:>7.3f}{row.ap:>8.4f}{row.megabytes:>7.1f}{shares}{row.agreement.spurious:>9}"
