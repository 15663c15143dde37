"""The real TensorRT, where it is installed: engines of every kind, and what is said about the second of two.

Everything that is built stays in build/gpu-check: engines, ONNX files, sidecars, logs and the inspector's layers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpu_check.check import Check, CheckFailedError, Figures, Situation, SkippedError, demand
from gpu_check.options import ROOT
from rtdetr_deploy import Detections, DeviceError, Predictor
from rtdetr_deploy.errors import ArtifactError, RtdetrError
from rtdetr_deploy.packages import needed_for
from rtdetr_deploy.runtimes import RuntimeOptions, open_runtime
from rtdetr_deploy.runtimes.trt.batch_context import BatchContext
from rtdetr_deploy.runtimes.trt.logger import ERRORS, LEAN, Mark, mark, messages_since
from rtdetr_deploy.runtimes.trt.runtime import TensorRtRuntime
from rtdetr_deploy.runtimes.trt.sidecar import AMPERE, version_numbers

KEPT = ROOT / "build" / "gpu-check"
CLOSE = 0.05
HEAD = 64
"""Bytes that an engine is told by."""
PICTURES = 16
"""Number of pictures that are drawn to calibrate and verify on, without a folder of images."""


@dataclass(frozen=True)
class Build:
    """An engine to build: its file's stem, what it shows, `ExportOptions`, `EngineOptions`, and seconds at most."""

    name: str
    title: str
    export: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    seconds: int = 900

    @property
    def check(self) -> Check:
        """The check that builds it."""
        return Check(f"engine-{self.name}", f"TensorRT: {self.title}", self.seconds, partial(check_build, build=self))


FP16 = Build("fp16", "an FP16 engine", {"precision": "fp16"})
BUILDS = (
    Build("float32-input", "FP16 that takes float32", {"precision": "fp16", "raw_input": False}),
    Build("fp32", "FP32", {}),
    Build("int8", "INT8, the rest FP16", {"precision": "int8", "non_int8_precision": "fp16"}, seconds=2400),
    Build("dynamic", "FP16 for 1 to 8 images", {"precision": "fp16", "batch": None}, {"max_batch": 8}),
    Build("version", "FP16 for later versions, too", {"precision": "fp16"}, {"version_compatible": True}),
    Build("hardware", "FP16 for all GPUs from Ampere on", {"precision": "fp16"}, {"hardware_compatible": "ampere+"}),
)
"""Beside the default of FP16 engines (uint8, batch 1), which `check_engine` builds."""


def check_engine(situation: Situation) -> Figures:
    """Build a verified FP16 engine, open it twice, close the first runtime and use the second, which errs, too."""
    path, figures = build_engine_of(situation, FP16)
    picture = draw_pictures(1)[0]
    device = RuntimeOptions(device=f"cuda:{situation.gpu.number}")
    with closing(open_engine(path, device)) as runtime, Predictor(runtime, 0.0) as second:
        with Predictor(path, 0.0, device=device.device) as first:
            found = first.detect(picture)
            said = [provoke(runtime)]
            _refuse_broken(path, device)
        again = [second.detect(picture) for _ in range(4)]
        said.append(provoke(runtime))
        _refuse_broken(path, device)
    for one in again:
        demand(np.array_equal(one.scores, found.scores), "two Predictors of one engine differ")
    return {**figures, "said of the second": said}


def check_build(situation: Situation, build: Build) -> Figures:
    """Build and verify an engine, open its file, and compare its detections of single pictures and of batches."""
    path, figures = build_engine_of(situation, build)
    pictures = draw_pictures(3)
    with (
        Predictor(path, 0.0, device=f"cuda:{situation.gpu.number}") as predictor,
        Predictor(path.with_name(f"{path.name}.onnx"), 0.0) as reference,
    ):
        single = [predictor.detect(picture) for picture in pictures]
        worst = worst_score(single, [reference.detect(picture) for picture in pictures])
        # INT8 isn't judged by ONNX Runtime's emulation, see docs/tensorrt.md; its verification compares it with FP32.
        demand(build.export.get("precision") == "int8" or worst <= CLOSE, f"scores are off the file's by {worst:.3f}")
        for count in (3, 1, 2):
            found = list(predictor.stream(pictures[:count], batch=predictor.batch or count))
            off = worst_score(found, single[:count])
            demand(off <= CLOSE, f"scores of a batch of {count} are off those of single pictures by {off:.3f}")
    return {**figures, "worst_score": worst}


def build_engine_of(situation: Situation, build: Build) -> tuple[Path, Figures]:
    """Export the checkpoint and build an engine of it, verified; return its file and what is known of it.

    Raises `SkippedError` where something that it needs is not here.
    """
    weights, gpu = situation.options.weights, situation.gpu
    if importlib.util.find_spec("tensorrt") is None:
        raise SkippedError("TensorRT is not installed")
    if not weights.exists():
        raise SkippedError(f"{weights.name} is not here; name it by an option")
    if build.engine.get("hardware_compatible") == "ampere+" and version_numbers(gpu.capability) < AMPERE:
        raise SkippedError(f"{gpu.name} is older than Ampere")
    with needed_for("this check", "export"):
        from rtdetr_export import EngineOptions, ExportOptions, export
    engine = EngineOptions(
        device=f"cuda:{gpu.number}", keep_log=True, timing_cache=KEPT / "timing.cache", **build.engine
    )
    options = ExportOptions(
        weights, KEPT / f"{build.name}.engine", calibration=find_pictures(situation), engine=engine, **build.export
    )
    try:
        result = export(options)
    except RtdetrError as error:
        if LEAN in str(error):
            raise SkippedError(str(error)) from error
        raise
    demand(result.report is not None and result.report.passed, "the engine was not verified")
    return result.path, {"verified": str(result.report), "kept": str(result.path.relative_to(KEPT.parent.parent))}


def find_pictures(situation: Situation) -> Path:
    """Return the folder of images to calibrate and verify on: the given ones where they are there, else drawn ones."""
    if situation.options.images.exists():
        return situation.options.images
    with needed_for("this check", "train"):
        from rtdetr_train.data.smears import write_smears
    return write_smears(KEPT / "pictures", PICTURES).parent


def draw_pictures(count: int) -> list[Any]:
    """Return pictures of noise of a camera's size."""
    return list(np.random.default_rng(0).integers(0, 256, (count, 480, 640, 3), np.uint8))


def worst_score(found: list[Detections], expected: list[Detections]) -> float:
    """Return by how much scores differ at most, best with best."""
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(one.scores - other.scores).max()) for one, other in pairs)


def open_engine(model: Path | bytes, options: RuntimeOptions) -> TensorRtRuntime:
    """Open an engine file, or the content of one."""
    runtime = open_runtime(model, "tensorrt", options)
    assert isinstance(runtime, TensorRtRuntime)
    return runtime


def provoke(runtime: TensorRtRuntime) -> str:
    """Ask an engine for a batch that it doesn't have, and return TensorRT's words, which our error must hold."""
    since = mark()
    try:
        with runtime._in_use() as (slot, engine):
            BatchContext(engine, runtime.max_batch + 1, slot._shared)
    except DeviceError as error:
        return _find_words(str(error), since)
    raise CheckFailedError("TensorRT takes more images than the engine was built for")


def _refuse_broken(path: Path, options: RuntimeOptions) -> None:
    """See that a file without an engine's first bytes is refused in TensorRT's words, by a runtime that is new."""
    since, content = mark(), path.read_bytes()
    try:
        open_engine(bytes(HEAD) + content[HEAD:], options).close()
    except ArtifactError as error:
        _find_words(str(error), since)
    else:
        raise CheckFailedError("an engine without its first bytes was opened")


def _find_words(error: str, since: Mark) -> str:
    """Return what TensorRT said first of an error. Raises `CheckFailedError` unless that is in our error."""
    texts = [" ".join(one.text.split()) for one in messages_since(since) if one.severity in ERRORS]
    demand(texts, f"TensorRT's error did not reach the logger: {error}")
    demand(texts[0] in error, f"the error holds other words than TensorRT's ({texts[0]}): {error}")
    return texts[0]
