"""The real TensorRT, where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gpu_check.check import Figures, Situation, SkippedError, demand
from rtdetr_deploy import Predictor
from rtdetr_deploy.packages import needed_for

CLOSE = 0.05


def check_engine(situation: Situation) -> Figures:
    """Build a verified FP16 engine of a checkpoint, open it twice, close the first Predictor and use the second."""
    if importlib.util.find_spec("tensorrt") is None:
        raise SkippedError("TensorRT is not installed")
    if not situation.options.weights.exists():
        raise SkippedError(f"{situation.options.weights.name} is not here; name it by an option")
    with needed_for("this check", "export"):
        from rtdetr_export import EngineOptions, ExportOptions, build_engine, export_onnx
    device = f"cuda:{situation.gpu.number}"
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with TemporaryDirectory() as folder:
        onnx = export_onnx(ExportOptions(situation.options.weights, Path(folder, "model.onnx"), precision="fp16")).path
        target = Path(folder, "model.engine")
        report = build_engine(onnx, target, EngineOptions()).report
        demand(report is not None, "the engine was not verified")
        with Predictor(onnx, 0.0) as reference:
            expected = reference.detect(picture)
        with Predictor(target, 0.0, device=device) as second:
            with Predictor(target, 0.0, device=device) as first:
                found = first.detect(picture)
            again = [second.detect(picture) for _ in range(4)]
            name = second.runtime
        for one in (found, *again):
            demand(np.array_equal(one.scores, found.scores), "two Predictors of one engine differ")
        worst = float(np.abs(found.scores - expected.scores).max())
        demand(worst <= CLOSE, f"scores are off ONNX Runtime's by {worst:.3f}")
    return {"runtime": name, "worst_score": worst, "verified": str(report)}
