"""A file of lower precision against the FP32 torch model that it came from, detection by detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rtdetr_deploy import Predictor
from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.runtimes.eager import TorchRuntime
from rtdetr_deploy.words import plural
from rtdetr_export.verify.agreement import Agreement, compare
from rtdetr_export.verify.report import Report
from rtdetr_export.verify.tolerances import LIMITS, MIN_COMPARED


@dataclass(frozen=True)
class ReducedPrecisionReport(Report):
    """Agreement of a file of lower precision with torch on `images` images."""

    verdict = "loses detections of the FP32 model"

    precision: str
    images: int
    agreement: Agreement

    def problems(self) -> list[str]:
        """See `Report`."""
        limits = LIMITS[self.precision]
        if self.agreement.keeps_to(limits):
            return []
        return [
            f"only {self.agreement.match_rate(-1):.3f} are within {limits.tolerances[-1]} (at least "
            f"{limits.min_match_rate} must be); keep nodes in FP32 with `keep_fp32`, or give images like yours with "
            "`calibration`"
        ]

    def __str__(self) -> str:
        agreement = self.agreement
        lines = [f"{self.precision} against torch FP32 on {plural(self.images, 'image')}, run by {self.runtime}:"]
        lines += [
            f"  {agreement.match_rate(index):8.4f} of {plural(agreement.expected, 'detection')} within {tolerance}"
            for index, tolerance in enumerate(agreement.tolerances)
        ]
        lines.append(f"  {plural(agreement.spurious, 'extra detection')}")
        return "\n".join(lines)


def verify_reduced_precision(
    path: Path, reference: nn.Module, info: ArtifactInfo, images: Sequence[ImageLike]
) -> ReducedPrecisionReport:
    """Detect on `images` with the file and with `reference`, and compare. Raises `ArtifactError` for unusable files."""
    names = info.class_names
    with Predictor(TorchRuntime(reference, names, info.height, info.width), threshold=0.0) as torch_model:
        expected = [torch_model.detect(image) for image in images]
    runtime = "onnxruntime" if path.suffix.lower() == ".onnx" else None
    with Predictor(path, threshold=0.0, runtime=runtime) as predictor:
        found = predictor.detect_batch(images)
        agreement = compare(expected, found, LIMITS[info.precision].tolerances, at_least=MIN_COMPARED)
        return ReducedPrecisionReport(predictor.runtime, info.precision, len(images), agreement)
