"""In what a CPU may compute a file: BF16 against FP32, detection by detection, on a processor that has BF16.

What is found is stored in the file, so that `precision="auto"` chooses BF16 where it keeps detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rtdetr_deploy import Predictor
from rtdetr_deploy.artifacts.bf16 import MIN_BF16_DETECTIONS, MIN_BF16_MATCH_RATE, Bf16Check
from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import DeviceError, MissingPackageError
from rtdetr_deploy.images.frame import ImageLike
from rtdetr_deploy.words import plural
from rtdetr_export.precision.activations import evenly_spaced
from rtdetr_export.verify.agreement import Agreement, compare
from rtdetr_export.verify.tolerances import MIN_COMPARED

MAX_IMAGES = 64
"""Images that are compared, evenly chosen from more."""


@dataclass(frozen=True)
class ArithmeticsReport:
    """What BF16 did to the file's detections, or `reason`: why that is not known (`agreement` None then)."""

    images: int
    agreement: Agreement | None
    reason: str = ""

    @property
    def check(self) -> Bf16Check | None:
        """What is stored in the file."""
        if self.agreement is None:
            return None
        return Bf16Check(_rounded_down(self.agreement.match_rate(-1)), self.images, self.agreement.expected)

    def __str__(self) -> str:
        if self.agreement is None or self.check is None:
            return f'BF16 on CPUs: not compared, {self.reason}; `precision="auto"` is FP32 for this file'
        shares = "; ".join(
            f"{self.agreement.match_rate(index):.4f} within {tolerance}"
            for index, tolerance in enumerate(self.agreement.tolerances)
        )
        verdict = "allowed" if self.check.allowed else f"not allowed ({_why_not(self.check)})"
        found = plural(self.agreement.expected, "detection")
        return f"BF16 on CPUs: {verdict}; of {found} on {plural(self.images, 'image')} {shares}"


def _why_not(check: Bf16Check) -> str:
    if check.detections < MIN_BF16_DETECTIONS:
        return f"fewer than {MIN_BF16_DETECTIONS} detections were compared: more images of `calibration` are needed"
    return f"below {MIN_BF16_MATCH_RATE}"


def _rounded_down(share: float) -> float:
    """Return the share with four digits; what misses a limit must not reach it by rounding."""
    return math.floor(share * 10_000 + 1e-6) / 10_000


def compare_arithmetics(path: Path, info: ArtifactInfo, images: Sequence[ImageLike]) -> ArithmeticsReport | None:
    """Detect on `images`, those of the user, with the file in FP32 and in BF16 and compare.

    None for files that aren't for CPUs. Without images nothing is run: a few synthetic pictures would tell nothing.
    """
    if "fp16" in info.precision:
        return None
    if not images:
        return ArithmeticsReport(0, None, "no images were given (`calibration`)")
    if find_spec("openvino") is None:
        return ArithmeticsReport(0, None, "openvino is not installed")
    chosen = evenly_spaced(images, MAX_IMAGES)
    try:
        with Predictor(path, threshold=0.0, runtime="openvino", precision="bf16") as predictor:
            found = predictor.detect_batch(chosen)
    except (DeviceError, MissingPackageError) as error:
        return ArithmeticsReport(0, None, str(error))
    with Predictor(path, threshold=0.0, runtime="openvino", precision="fp32") as predictor:
        agreement = compare(predictor.detect_batch(chosen), found, at_least=MIN_COMPARED)
    return ArithmeticsReport(len(chosen), agreement)
