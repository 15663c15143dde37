"""A file of lower precision against the FP32 torch model that it came from, detection by detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rtdetr_deploy import Predictor
from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import ExportError
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.model import RTDETR
from rtdetr_deploy.runtimes.eager import TorchRuntime
from rtdetr_deploy.words import plural
from rtdetr_export.verify.agreement import Agreement, compare

REQUIRED = {"fp16": 0.98, "int8": 0.9}
"""Share of detections that must be matched at the widest tolerance, else the file is not written."""
LEAST = 20
"""Detections per image that are compared even where fewer are confident."""


@dataclass(frozen=True)
class ReducedPrecisionReport:
    """Agreement of a file of lower precision with torch on `images` images; `runtime` ran the file."""

    runtime: str
    precision: str
    images: int
    agreement: Agreement

    @property
    def passed(self) -> bool:
        """Whether enough detections are matched."""
        return self.agreement.share(-1) >= REQUIRED[self.precision]

    def require(self, name: str) -> None:
        """Raise `ExportError` unless the report passed."""
        if not self.passed:
            raise ExportError(
                f"{name} loses detections of the FP32 model and was not written: only {self.agreement.share(-1):.3f} "
                f"are within {self.agreement.tolerances[-1]} (at least {REQUIRED[self.precision]} must be); keep nodes "
                "in FP32 with --keep-fp32, or give images like yours with --calibration"
            )

    def __str__(self) -> str:
        agreement = self.agreement
        lines = [f"{self.precision} against torch FP32 on {plural(self.images, 'image')}, run by {self.runtime}:"]
        lines += [
            f"  {agreement.share(index):8.4f} of {agreement.wanted} detections within {tolerance}"
            for index, tolerance in enumerate(agreement.tolerances)
        ]
        lines.append(f"  {plural(agreement.unasked, 'detection')} that torch doesn't make")
        return "\n".join(lines)


def verify_reduced_precision(
    path: Path, reference: RTDETR, info: ArtifactInfo, images: Sequence[ImageLike]
) -> ReducedPrecisionReport:
    """Detect on `images` with the file and with `reference`, and compare. Raises `ArtifactError` for unusable files."""
    names = info.class_names
    with Predictor(TorchRuntime(reference, names, info.height, info.width), threshold=0.0) as torch_model:
        expected = [torch_model.detect(image) for image in images]
    with Predictor(path, threshold=0.0) as predictor:
        found = predictor.detect_batch(images)
        return ReducedPrecisionReport(
            predictor.runtime, info.precision, len(images), compare(expected, found, least=LEAST)
        )
