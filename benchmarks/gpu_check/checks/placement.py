"""What a placement of FP16 does to detections with a GPU's arithmetic, and where the time of FP16 models goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_check.check import Figures, Situation, SkippedError, demand
from gpu_check.checks.arrays import require_torch
from rtdetr_bench.options import EvaluationSet
from rtdetr_deploy import Detections, Predictor, __version__
from rtdetr_deploy.artifacts.metadata import METADATA_KEY
from rtdetr_deploy.packages import needed_for

WANTED = 0.999
"""Share of detections that the file's own placement keeps within 0.5 px and 0.01."""
AP_DROP = 0.001
FP32, PLACED = "FP32", "FP16 as exported"


def check_placement(situation: Situation) -> Figures:
    """Compare detections in a GPU's FP16 with FP32: placed as exported, with a scope less each, FP16 everywhere."""
    torch = require_torch()
    options = situation.options
    for path in (options.weights, options.annotations, options.images):
        if not path.exists():
            raise SkippedError(f"{path.name} is not here; name it by an option")
    with needed_for("this check", "export"):
        from gpu_check.torch_graph import TorchGraph
        from rtdetr_deploy.evaluate.coco import average_precision
        from rtdetr_export.verify.agreement import compare
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    data = EvaluationSet(options.annotations, options.images)
    figures: Figures = {}
    expected: list[Detections] = []
    with TemporaryDirectory() as folder:
        for name, path in write_placements(options.weights, Path(folder)):
            with Predictor(TorchGraph(path, f"cuda:{situation.gpu.number}"), 0.0) as predictor:
                truth = data.read(predictor.class_names)
                found = [predictor.detect(image) for _, image in truth.images]
                ap = average_precision(found, truth, predictor.class_names).ap
            expected = expected or found
            agreement = compare(expected, found)
            shares = {str(t): agreement.match_rate(i) for i, t in enumerate(agreement.tolerances)}
            figures[name] = {"AP": ap, **shares, "spurious": agreement.spurious}
            if name == PLACED:
                demand(agreement.match_rate() >= WANTED, f"{name}: only {agreement.match_rate():.4f} are kept")
                demand(figures[FP32]["AP"] - ap <= AP_DROP, f"{name}: AP {ap:.4f} against {figures[FP32]['AP']:.4f}")
    return figures


def write_placements(weights: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield files of a checkpoint: FP32, FP16 as exported, without each of its FP32 scopes, and FP16 everywhere."""
    from rtdetr_export import ExportOptions, export_onnx
    from rtdetr_export.graph import POSTPROCESS
    from rtdetr_export.pipeline import trace_checkpoint
    from rtdetr_export.precision.fp16 import to_fp16
    from rtdetr_export.simplify import serialize

    path = folder / "placed.onnx"
    yield FP32, export_onnx(ExportOptions(weights, folder / "single.onnx", verify=False)).path
    traced = trace_checkpoint(ExportOptions(weights))
    scopes = list(dict.fromkeys(scope.name for scope in traced.placement.kept.values()))
    places = {PLACED: traced.placement}
    places |= {f"without {name}": traced.placement.without(name) for name in scopes if name != POSTPROCESS.name}
    places["FP16 everywhere"] = traced.placement.only(POSTPROCESS.name)
    for name, placement in places.items():
        graph = traced.graph.clone()
        to_fp16(graph, keep=placement.kept)
        path.write_bytes(serialize(graph, {METADATA_KEY: traced.info.to_json()}, __version__))
        yield name, path
