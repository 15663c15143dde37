"""What an engine is compared with, and what it must keep to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.runtimes import Runtime, RuntimeOptions, open_runtime
from rtdetr_export.verify.tolerances import Limits, engine_limits

SAME = ("class_names", "size", "layers", "queries", "cascade")
"""What the model of a reference must share with that of the engine."""


@dataclass(frozen=True)
class Reference:
    """An open `runtime`, what to call it, and the `limits` that an engine's detections keep to."""

    runtime: Runtime
    name: str
    limits: Limits


def open_reference(path: Path | None, onnx: Path, info: ArtifactInfo) -> Reference:
    """Open the FP32 model in `path` (.onnx, or a checkpoint, which needs torch), else the ONNX file of the engine.

    `info` is that of the engine. Raises `OptionError` for a reference of another model or of lower precision, and what
    opening it raises.
    """
    if path is None:
        limits = engine_limits(info.precision, against_fp32=False, match_rate=info.match_rate)
        return Reference(open_runtime(onnx, "onnxruntime"), "ONNX Runtime", limits)
    if path.suffix.lower() == ".onnx":
        runtime = open_runtime(path, "onnxruntime")
    else:
        runtime = open_runtime(path, "torch", RuntimeOptions(size=info.size))
    try:
        _check(runtime.info, path.name, info)
    except OptionError:
        runtime.close()
        raise
    return Reference(runtime, f"FP32 ({path.name})", engine_limits(info.precision, against_fp32=True))


def _check(found: ArtifactInfo | None, name: str, info: ArtifactInfo) -> None:
    if found is None:
        raise OptionError(f"`reference` {name} was not written by rtdetr-export, and is not a checkpoint")
    if found.precision != "fp32":
        raise OptionError(f"`reference` {name} is {found.precision}, expected fp32")
    for field in SAME:
        one, other = getattr(found, field), getattr(info, field)
        if one != other:
            raise OptionError(f"`reference` {name} has {field} {one}, and the engine {other}; give the same model's")
