"""A file of lower precision against the FP32 torch model that it came from, detection by detection.

INT8 rounds otherwise in each runtime, so `.onnx` files are run by every runtime for CPUs that is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
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
    """Agreement of a file of lower precision with torch on `images` images.

    `agreements` has what each of the runtimes detected, by its name; the file is as good as the worst of them.
    """

    verdict = "loses detections of the FP32 model"

    precision: str
    images: int
    agreements: Mapping[str, Agreement]

    @property
    def agreement(self) -> Agreement:
        """That of the runtime that keeps the fewest detections."""
        return min(self.agreements.values(), key=lambda agreement: agreement.match_rate(-1))

    def problems(self) -> list[str]:
        """See `Report`."""
        limits = LIMITS[self.precision]
        return [
            f"only {agreement.match_rate(-1):.3f} are within {limits.tolerances[-1]} in {runtime} (at least "
            f"{limits.min_match_rate} must be); keep nodes in FP32 with `keep_fp32`, or give images like yours with "
            "`calibration`"
            for runtime, agreement in self.agreements.items()
            if not agreement.keeps_to(limits)
        ]

    def __str__(self) -> str:
        return "\n".join(line for runtime in self.agreements for line in self._lines(runtime))

    def _lines(self, runtime: str) -> list[str]:
        agreement = self.agreements[runtime]
        return [
            f"{self.precision} against torch FP32 on {plural(self.images, 'image')}, run by {runtime}:",
            *(
                f"  {agreement.match_rate(index):8.4f} of {plural(agreement.expected, 'detection')} within {tolerance}"
                for index, tolerance in enumerate(agreement.tolerances)
            ),
            f"  {plural(agreement.spurious, 'extra detection')}",
        ]


def verify_reduced_precision(
    path: Path, reference: nn.Module, info: ArtifactInfo, images: Sequence[ImageLike]
) -> ReducedPrecisionReport:
    """Detect on `images` with the file and with `reference`, and compare. Raises `ArtifactError` for unusable files."""
    names = info.class_names
    with Predictor(TorchRuntime(reference, names, info.height, info.width), threshold=0.0) as torch_model:
        expected = [torch_model.detect(image) for image in images]
    agreements: dict[str, Agreement] = {}
    for runtime in _runtimes(path, info.precision):
        with Predictor(path, threshold=0.0, runtime=runtime) as predictor:
            found = predictor.detect_batch(images)
            tolerances = LIMITS[info.precision].tolerances
            agreements[predictor.runtime] = compare(expected, found, tolerances, at_least=MIN_COMPARED)
    return ReducedPrecisionReport(" and ".join(agreements), info.precision, len(images), agreements)


def _runtimes(path: Path, precision: str) -> list[str | None]:
    """Return the runtimes that the file is for and that are installed; None stands for the one of its suffix."""
    if path.suffix.lower() != ".onnx":
        return [None]
    both = precision == "int8" and find_spec("openvino") is not None
    return ["onnxruntime", "openvino"] if both else ["onnxruntime"]
