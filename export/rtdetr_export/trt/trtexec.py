"""The command of NVIDIA's own tool that builds the same engine, for whoever wants to repeat or profile a build."""

from __future__ import annotations

import shlex
from pathlib import Path

from rtdetr_deploy.artifacts.hardware import HardwareCompatible
from rtdetr_deploy.artifacts.metadata import INPUT, ArtifactInfo
from rtdetr_export.trt.options import EngineOptions

LEVELS: dict[HardwareCompatible, str] = {"ampere+": "ampere+", "same-compute-capability": "sameComputeCapability"}
TILING = {"none": 0, "fast": 1, "moderate": 2, "full": 3}


def trtexec_line(onnx: Path, engine: Path, options: EngineOptions, info: ArtifactInfo) -> str:
    """Return the `trtexec` command that builds `engine` of `onnx` as `options` say, for a shell."""
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}", "--stronglyTyped", "--noTF32"]
    if info.batch is None:
        shape = (info.height, info.width, 3) if info.raw_input else (3, info.height, info.width)
        for name, batch in zip(("min", "opt", "max"), options.profile(None), strict=True):
            words.append(f"--{name}Shapes={INPUT}:{'x'.join(map(str, (batch, *shape)))}")
    words.append("--profilingVerbosity=detailed")
    words += [f"--{name}={value}" for name, value in _chosen(options).items()]
    words += ["--versionCompatible"] if options.version_compatible else []
    return " ".join(shlex.quote(word) for word in words)


def _chosen(options: EngineOptions) -> dict[str, object]:
    """Return the options of `trtexec` that have a value, without those at TensorRT's default."""
    workspace = None if options.workspace is None else f"workspace:{options.workspace * 1024:.0f}"  # MiB
    found: dict[str, object] = {
        "builderOptimizationLevel": options.optimization_level,
        "maxAuxStreams": options.max_aux_streams,
        "tilingOptimizationLevel": None if options.tiling_level is None else TILING[options.tiling_level],
        "hardwareCompatibilityLevel": LEVELS.get(options.hardware_compatible),
        "memPoolSize": workspace,
        "timingCacheFile": options.timing_cache,
        "device": options.gpu_number,
    }
    return {name: value for name, value in found.items() if value is not None}
