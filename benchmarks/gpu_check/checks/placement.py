"""What a placement of FP16 does to detections with a GPU's arithmetic, and where the time of FP16 models goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_check.check import Figures, Situation, SkippedError, demand
from gpu_check.checks.arrays import require_torch
from rtdetr_bench.options import EvaluationSet
from rtdetr_deploy import Detections, Predictor
from rtdetr_deploy.packages import needed_for

WANTED = 0.999
"""Share of detections that the file's own placement keeps within 0.5 px and 0.01."""
AP_DROP = 0.001
FP32 = "FP32"


def check_placement(situation: Situation) -> Figures:
    """Compare detections in a GPU's FP16 with FP32: placed as exported, FP16 everywhere, with a scope less each."""
    torch = require_torch()
    options = situation.options
    for path in (options.weights, options.annotations, options.images):
        if not path.exists():
            raise SkippedError(f"{path.name} is not here; name it by an option")
    with needed_for("this check", "export"):
        from gpu_check.torch_graph import TorchGraph
        from rtdetr_bench.studies.placements import EXPORTED
        from rtdetr_deploy.evaluate.coco import average_precision
        from rtdetr_export.verify.agreement import compare
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    data = EvaluationSet(options.annotations, options.images)
    figures: Figures = {}
    expected: list[Detections] = []
    with TemporaryDirectory() as folder:
        for name, path in write_files(options.weights, Path(folder)):
            with Predictor(TorchGraph(path, f"cuda:{situation.gpu.number}"), 0.0) as predictor:
                truth = data.read(predictor.class_names)
                found = [predictor.detect(image) for _, image in truth.images]
                ap = average_precision(found, truth, predictor.class_names).ap
            expected = expected or found
            agreement = compare(expected, found)
            shares = {str(t): agreement.match_rate(i) for i, t in enumerate(agreement.tolerances)}
            figures[name] = {"AP": ap, **shares, "spurious": agreement.spurious}
            if name == EXPORTED:
                demand(agreement.match_rate() >= WANTED, f"{name}: only {agreement.match_rate():.4f} are kept")
                demand(figures[FP32]["AP"] - ap <= AP_DROP, f"{name}: AP {ap:.4f} against {figures[FP32]['AP']:.4f}")
    return figures


def write_files(weights: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield files of a checkpoint: FP32, then the placements of the precision study, and without each FP32 scope."""
    from rtdetr_bench.studies.placements import write_placements
    from rtdetr_export import ExportOptions, export_onnx

    path = folder / "placed.onnx"
    yield FP32, export_onnx(ExportOptions(weights, folder / "single.onnx", verify=False)).path
    for name in write_placements(weights, path, each_scope=True):
        yield name, path
