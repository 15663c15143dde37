"""What an export returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rtdetr_deploy.artifacts.metadata import ArtifactInfo

if TYPE_CHECKING:
    from rtdetr_deploy.runtimes.trt.sidecar import EngineInfo
    from rtdetr_export.precision.fp16 import Fp16Report
    from rtdetr_export.precision.sensitivity import QuantizationPlan
    from rtdetr_export.verify.arithmetics import ArithmeticsReport
    from rtdetr_export.verify.report import Report


@dataclass(frozen=True)
class Package:
    """The `folder` that a format's system takes, its `files`, and `next_steps`: what to do where the model will run."""

    folder: Path
    files: tuple[Path, ...]
    next_steps: str


@dataclass(frozen=True)
class ExportResult:
    """`path` of the written file, its `info`, and the `report` of its verification (None where it was skipped).

    The folder of a format is the `package`, and `path` the ONNX file in it.

    `arithmetics` says whether CPUs may compute it in BF16 (None: another kind of file, or not verified).

    `fp16` says which nodes are computed in FP16 and `quantization` which blocks in INT8, for ONNX files that have some.
    Engines have `engine_info`, and `onnx` where the ONNX file beside them was exported by the same call; `trtexec` is
    the command that builds the same engine with NVIDIA's tool.
    """

    path: Path
    info: ArtifactInfo
    report: Report | None
    fp16: Fp16Report | None = None
    quantization: QuantizationPlan | None = None
    arithmetics: ArithmeticsReport | None = None
    package: Package | None = None
    engine_info: EngineInfo | None = None
    onnx: ExportResult | None = None
    trtexec: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The file at `path`, and the weights beside it that it can't do without."""
        weights = self.path.with_suffix(".bin") if self.path.suffix.lower() == ".xml" else None
        return (self.path,) if weights is None else (self.path, weights)
