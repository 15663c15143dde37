"""What FP16 does to detections, by how it is placed, and INT8, by how much of the model is in it.

FP16 is placed by rtdetr-export and everywhere. Files that other converters made of our FP32 file are measured beside
(`against`; see benchmarks/peers). With calibration images follows the curve of INT8 as rtdetr-export draws it for
`target`, here with the AP at each of its points; what is not INT8 is FP32 there. Every file is run by ONNX Runtime on
the CPU and compared with the FP32 torch model, detection by detection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rtdetr_bench.accuracy import open_any
from rtdetr_bench.options import EvaluationSet, PrecisionStudyOptions
from rtdetr_bench.studies.graph_counts import GraphCounts, count_graph
from rtdetr_bench.studies.placements import save, write_placements
from rtdetr_deploy import ArtifactError, Detections
from rtdetr_deploy.evaluate.coco import average_precision, require_evaluator
from rtdetr_export import ExportOptions, export_onnx
from rtdetr_export.pipeline import trace_checkpoint
from rtdetr_export.precision.reduce import choose_images, make_scheme
from rtdetr_export.precision.sensitivity import choose_blocks
from rtdetr_export.verify.agreement import Agreement, compare
from rtdetr_export.verify.tolerances import TOLERANCES


@dataclass(frozen=True)
class PrecisionRow:
    """A file: what it is made of, its size in MB, the share of work in INT8, its AP, and the reference's detections.

    `refused` is what ONNX Runtime said of a file that it doesn't run; `ap` and `agreement` are None then.
    """

    name: str
    counts: GraphCounts
    megabytes: float
    int8: float = 0.0
    ap: float | None = None
    agreement: Agreement | None = None
    refused: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return the row as plain numbers and text."""
        facts: dict[str, object] = {
            "file": self.name,
            "int8": round(self.int8, 4),
            "megabytes": round(self.megabytes, 1),
            "nodes": self.counts.to_json(),
        }
        if self.agreement is None:
            return {**facts, "refused": self.refused}
        matched = {str(t): self.agreement.match_rate(index) for index, t in enumerate(TOLERANCES)}
        return {**facts, "AP": self.ap, "matched": matched, "spurious": self.agreement.spurious}


@dataclass(frozen=True)
class _File:
    """A file to measure, the name that its row gets, and the share of its work in INT8."""

    name: str
    path: Path
    int8: float = 0.0
    third_party: bool = False


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
        for file in _files(options, Path(folder)):
            rows.append(_measure(file, expected, options.data))
            on_row(rows[-1])
    return rows


def _measure(file: _File, expected: list[Detections], data: EvaluationSet) -> PrecisionRow:
    """Return a file's row; a third-party file that ONNX Runtime refuses has the reason in it."""
    facts = PrecisionRow(file.name, count_graph(file.path), file.path.stat().st_size / 1e6, file.int8)
    try:
        found, ap = _detect(file.path, data)
    except ArtifactError as error:
        if not file.third_party:
            raise
        return replace(facts, refused=str(error))
    return replace(facts, ap=ap, agreement=compare(expected, found))


def _files(options: PrecisionStudyOptions, folder: Path) -> Iterator[_File]:
    """Yield the files one after another; all but the first of ours are written to the same place."""
    single, trial = export_onnx(ExportOptions(options.weights, folder / "single.onnx")).path, folder / "trial.onnx"
    yield _File("FP32", single)
    for name in write_placements(options.weights, trial):
        yield _File(name, trial)
    for path in options.against:
        yield _File(path.stem, path, third_party=True)
    if options.calibration is not None:
        yield from _quantized(_int8_export(options, trial), trial)


def _int8_export(options: PrecisionStudyOptions, trial: Path) -> ExportOptions:
    """Return the export whose curve is measured: its graph has the form that INT8 files of this target have."""
    return ExportOptions(
        options.weights,
        trial,
        precision="int8",
        calibration=options.calibration,
        target=options.target,
        non_int8_precision="fp32",
    )


def _quantized(export: ExportOptions, trial: Path) -> Iterator[_File]:
    """Yield the points of INT8's curve of an INT8 export."""
    traced = trace_checkpoint(export)
    graph, info = traced.graph, traced.info
    pictures = choose_images(export.calibration, info.height, info.width)
    scheme = make_scheme(graph, traced.placement, info, pictures, for_cpu=not export.fuses_for_gpu)
    plan = choose_blocks(graph, scheme, pictures, whole_curve=True)
    for count, point in enumerate(plan.curve, start=1):
        changed = graph.clone()
        scheme.quantize(changed, [node for node in scheme.nodes if node.block in point.blocks])
        mark = "* " * (count == plan.chosen)
        yield _File(f"{mark}INT8 to {point.blocks[-1]}", save(changed, info, trial), point.macs)


def _detect(file: Path, data: EvaluationSet) -> tuple[list[Detections], float]:
    with open_any(file) as predictor:
        truth = data.read(predictor.class_names)
        found = predictor.detect_batch([path for _, path in truth.images], threshold=0.0)
        return found, average_precision(found, truth, predictor.class_names).ap


def precision_heads() -> str:
    """Return the head of the table that `format_precision` makes lines of."""
    nodes = f"{'casts':>7}{'FP32':>6}{'adds':>7}"
    return (
        f"{'file':<44}{'INT8':>7}{'MB':>7}{nodes}{'AP':>8}"
        + "".join(f"{t!s:>14}" for t in TOLERANCES)
        + f"{'extra':>7}"
    )


def format_precision(row: PrecisionRow) -> str:
    """Return a file's line of the table."""
    counts = row.counts
    additions = f"{counts.fused_additions}/{counts.additions}" if counts.additions else "-"
    facts = f"{row.name:<44}{row.int8:>7.3f}{row.megabytes:>7.1f}{counts.casts:>7}{counts.fp32:>6}{additions:>7}"
    if row.agreement is None:
        return f"{facts}  refused: {row.refused}"
    shares = "".join(f"{row.agreement.match_rate(index):>14.4f}" for index in range(len(TOLERANCES)))
    return f"{facts}{row.ap:>8.4f}{shares}{row.agreement.spurious:>7}"
