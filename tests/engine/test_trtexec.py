"""The command of NVIDIA's tool, word for word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_export import EngineOptions
from rtdetr_export.trt.trtexec import trtexec_line

INFO = ArtifactInfo(
    class_names=("a",), height=480, width=640, batch=1, variant="r50", layers=6, queries=300, max_detections=300,
    precision="fp16", sampler="gather", outputs="detections", raw_input=True, opset=17, source="r50.pth",
    source_digest="0", verified=True, version="0",
)  # fmt: skip
START = "trtexec --onnx=r50.onnx --saveEngine=r50.engine --stronglyTyped --noTF32"
DETAILED = "--profilingVerbosity=detailed"


@pytest.mark.parametrize(
    ("info", "options", "expected"),
    [
        ({}, {}, f"{START} {DETAILED}"),
        (
            {"batch": None},
            {"opt_batch": 4},
            f"{START} --minShapes=images:1x480x640x3 --optShapes=images:4x480x640x3 --maxShapes=images:8x480x640x3 "
            f"{DETAILED}",
        ),
        (
            {"batch": None, "raw_input": False, "preprocess": None},
            {"max_batch": 2},
            f"{START} --minShapes=images:1x3x480x640 --optShapes=images:1x3x480x640 --maxShapes=images:2x3x480x640 "
            f"{DETAILED}",
        ),
        (
            {},
            {
                "optimization_level": 5, "max_aux_streams": 0, "tiling_level": "full", "hardware_compatible": True,
                "workspace": 1.5, "timing_cache": "t4 cache", "device": "cuda:1", "version_compatible": True,
            },
            f"{START} {DETAILED} --builderOptimizationLevel=5 --maxAuxStreams=0 --tilingOptimizationLevel=3 "
            "--hardwareCompatibilityLevel=ampere+ --memPoolSize=workspace:1536 '--timingCacheFile=t4 cache' --device=1 "
            "--versionCompatible",
        ),
        (
            {},
            {"hardware_compatible": "same-compute-capability", "tiling_level": "none"},
            f"{START} {DETAILED} --tilingOptimizationLevel=0 --hardwareCompatibilityLevel=sameComputeCapability",
        ),
        ({}, {"accept": True, "keep_log": True, "reference": "r50.pth", "device": "cuda"}, f"{START} {DETAILED}"),
    ],
)  # fmt: skip
def test_trtexec_gets_what_the_builder_gets(info: dict[str, Any], options: dict[str, Any], expected: str) -> None:
    line = trtexec_line(Path("r50.onnx"), Path("r50.engine"), EngineOptions(**options), replace(INFO, **info))
    assert line == expected
